"""The configuration of a run: frozen dataclasses of plain values with a strict JSON round trip.

A field lives on the dataclass of the component that reads it (`DecoderConfig` in model/decoder.py, `DataConfig` in
data/dataset.py, ...); this file holds what belongs to no single component, and the codec. A field is *identity*, so
that a difference on resume is refused, unless it is marked `OPERATIONAL`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar

import jax
import tyro

from data.dataset import DataConfig
from data.images import ImagesConfig
from model.decoder import DecoderConfig
from model.distillation import DistillationConfig
from model.encoder import EncoderConfig
from model.structures import ModelConfig
from train.checkpoint import CheckpointConfig
from train.cluster import ClusterConfig
from train.mesh import MeshConfig
from train.objectives.causal_lm import CausalLMConfig
from train.objectives.distill import DistillConfig
from train.objectives.table import ObjectiveConfig, check_data, check_model
from train.optimizer import OptimizerConfig
from train.ramp import BatchSizes, RampConfig
from train.spikes import SpikeConfig

OPERATIONAL = {"operational": True}


def _operational(default: Any) -> Any:
    return field(default=default, metadata=OPERATIONAL)


@dataclass(frozen=True)
class LogConfig:
    """How often a row of metrics is written, in steps."""

    every: int = _operational(10)
    tensorboard: bool = _operational(True)
    wandb: bool = _operational(False)  # to Weights & Biases too, as its own environment variables say


@dataclass(frozen=True)
class EvaluateConfig:
    """Validation while training: every `every` steps (0: only at the end), on at most `tokens` tokens (0: all)."""

    every: int = _operational(0)
    tokens: int = _operational(0)


@dataclass(frozen=True)
class SampleConfig:
    """The text written at the end of a run, so that a person can read what was learned; `tokens` 0 for none.

    With `every` it is also written on the way, each time after so many steps (0: only at the end).
    """

    prompt: str = _operational("")
    tokens: int = _operational(120)
    temperature: float = _operational(0.8)
    every: int = _operational(0)


@dataclass(frozen=True)
class ProfileConfig:
    """An XProf trace of `steps` steps (0: none) from step `start` on, written into the run's tensorboard folder."""

    start: int = _operational(10)
    steps: int = _operational(0)


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is."""

    model: ModelConfig
    data: DataConfig | ImagesConfig = DataConfig()
    objective: ObjectiveConfig = CausalLMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sample: SampleConfig = SampleConfig()
    profile: ProfileConfig = ProfileConfig()
    name: str = _operational("run")  # what the run is called
    run_dir: str | None = _operational(None)  # None: runs/NAME
    steps: int = 1000  # the schedule's length
    stop_after: int | None = _operational(None)  # end this invocation after that many steps
    seed: int = 0  # of weights, order, dropout and sampling
    batch_size: int = _operational(32)  # sequences a step, over all devices
    micro_batches: int = _operational(1)  # parts that a batch is computed in, one after another
    ramp: RampConfig = RampConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # compute dtype; auto: bfloat16 on accelerators
    deterministic: bool = _operational(False)  # bit-equal repetition on GPUs too, slower
    compiler_options: tuple[str, ...] = _operational(())  # NAME=VALUE of XLA's compiler, for the step
    nonfinite_limit: int = _operational(20)  # steps in a row without finite gradients that end the run
    spikes: SpikeConfig = SpikeConfig()
    replicas_every: int = _operational(0)  # steps after which the devices' copies of the state are compared (0: never)
    hang_seconds: float = _operational(60.0)  # a step of more, and of 3 times the median, ends the run (0: never)
    # RUN or Hugging Face folder whose model, tokenizer and weights it starts from
    init_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    freeze: tuple[str, ...] = ()  # patterns of parameter names that are not learned

    @property
    def starts_from(self) -> str | None:
        """The run or folder whose weights it starts from; of a distillation, that of its teacher."""
        return self.objective.teacher if isinstance(self.objective, DistillConfig) else self.init_from

    @property
    def batches(self) -> BatchSizes:
        """The rows of each step."""
        return BatchSizes(self.batch_size, self.micro_batches, self.ramp)

    @property
    def folder(self) -> str:
        """The run directory."""
        return self.run_dir or f"runs/{self.name}"


Config = TypeVar("Config")

_LEAST = {
    "steps": 1,
    "stop_after": 1,
    "seed": 0,
    "batch_size": 1,
    "micro_batches": 1,
    "ramp.batch_size": 0,
    "ramp.steps": 0,
    "nonfinite_limit": 1,
    "hang_seconds": 0,
    "spikes.deviations": 0,
    "spikes.skip": 0,
    "spikes.limit": 0,
    "replicas_every": 0,
    "log.every": 1,
    "evaluate.every": 0,
    "evaluate.tokens": 0,
    "sample.tokens": 0,
    "sample.every": 0,
    "profile.start": 1,
    "profile.steps": 0,
}


def resolve(config: RunConfig) -> RunConfig:
    """The same configuration with nothing left to follow from other fields or from the devices."""
    precision = config.precision
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return dataclasses.replace(
        config,
        model=config.model.resolved(),
        optimizer=config.optimizer.resolved(),
        precision=precision,
        run_dir=config.folder,
    )


def with_model(config: RunConfig, model: ModelConfig) -> RunConfig:
    """The configuration with another model's architecture; its dropout and how it is computed stay.

    So does a head of another kind, or with classes of its own. Of a distillation it is the teacher's. Raises ValueError
    where the models are of different structures.
    """
    if isinstance(config.model, DistillationConfig) and isinstance(model, EncoderConfig):
        student = dataclasses.replace(
            config.model.student, vocab_size=model.vocab_size, vocab_multiple=model.vocab_multiple
        )
        return dataclasses.replace(config, model=dataclasses.replace(config.model, teacher=model, student=student))
    if type(model) is not type(config.model):
        found, wanted = (type(kind).__name__.removesuffix("Config") for kind in (model, config.model))
        raise ValueError(
            f"--objective.teacher names a model of the kind {found}, and teachers are encoders; name the run of one"
            if isinstance(config.model, DistillationConfig)
            else f"--from names a model of the kind {found}, and the recipe trains one of the kind {wanted}; take a "
            "recipe of the same kind of model"
        )
    found, wanted = (getattr(kind, "classes", ()) for kind in (model, config.model))
    other_classes = bool(wanted) and wanted != found
    new_head = other_classes or getattr(model, "head", None) != getattr(config.model, "head", None)
    kept = {
        item.name: getattr(config.model, item.name)
        for item in dataclasses.fields(config.model)
        if item.metadata.get("operational")
        or "dropout" in item.name
        or (new_head and item.name in ("head", "num_classes", "classes"))
    }
    return dataclasses.replace(config, model=dataclasses.replace(model, **kept))


def validate(config: RunConfig) -> None:
    """Raise ValueError, in one sentence, for a configuration that no run can have, whatever the devices."""
    from_json(type(config), to_json(config), "the configuration")  # types, and finite numbers
    for section in (config.model, config.data, config.optimizer, config.checkpoint):
        section.validate()
    for name, least in _LEAST.items():
        value = attrgetter(name)(config)
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if config.seed >= 2**31:
        raise ValueError(f"seed={config.seed} must be less than 2147483648")
    if config.batch_size % config.micro_batches:
        raise ValueError(f"batch_size={config.batch_size} must be a multiple of micro_batches={config.micro_batches}")
    config.batches.validate()
    if config.spikes.skip and not config.spikes.deviations:
        raise ValueError("spikes.skip leaves out batches behind a spike, and none is one; pass --spikes.deviations too")
    if (examples := config.batches.examples(config.steps)) >= 2**32:
        raise ValueError(
            f"steps={config.steps} x batch_size={config.batch_size} are {examples:,} examples, and a run counts less "
            f"than {2**32:,}; take fewer steps, or longer rows with --data.max-length"
        )
    for option in config.compiler_options:
        if not all(option.partition("=")):
            raise ValueError(
                f"compiler_options={option!r} must be NAME=VALUE, as in xla_tpu_scoped_vmem_limit_kib=32768"
            )
    model: Any = config.model
    for length, name in zip(config.data.lengths, ("max_length", "target_length"), strict=False):
        if getattr(model, "positions", None) == "learned" and length > model.max_length:
            raise ValueError(
                f"data.{name}={length} is longer than the model's max_length={model.max_length}, and its "
                f"positions are learned; pass --data.{name.replace('_', '-')} {model.max_length}, or a longer "
                "--model.max-length"
            )
    if isinstance(config.objective, DistillConfig) and config.init_from:
        raise ValueError(
            f"a distillation starts from its teacher; leave --from out, and pass --objective.teacher {config.init_from}"
        )
    check_model(config.objective, config.model)
    check_data(config.objective, config.data)
    if config.sample.tokens and not isinstance(config.model, DecoderConfig):
        raise ValueError("this model writes no text, so there is none to sample; pass --sample.tokens 0")
    if config.sample.every and not config.sample.tokens:
        raise ValueError(
            f"sample.every={config.sample.every} asks for texts of no tokens; pass --sample.tokens too, or leave it out"
        )
    config.objective.validate(max(config.data.lengths, default=0))


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as the JSON object that `from_json` reads back to an equal one."""
    hints = typing.get_type_hints(type(config))
    return {item.name: _encode(getattr(config, item.name), hints[item.name]) for item in dataclasses.fields(config)}


def from_json(cls: type[Config], value: Any, source: str = "config.json") -> Config:
    """The configuration that a JSON value describes; fields that it leaves out take their defaults.

    Raises:
        ValueError: in one sentence that begins with `source`, for unknown or missing fields and values of other types.
    """
    try:
        return _decode(cls, value, "")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def differences(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """The identity fields in which two resolved configurations differ: dotted name, old value, new value."""
    optimizer = new.optimizer
    # Without a falling end, the schedule reads the run's length only where the warm-up has to be shortened for it.
    warm = optimizer.warmup_steps < min(old.steps, new.steps)
    endless = optimizer.schedule == "rsqrt" or (optimizer.schedule in ("constant", "noam") and warm)
    return [change for change in _differences(old, new, "") if not (change[0] == "steps" and endless)]


def _differences(old: Any, new: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for item in dataclasses.fields(new):
        name, before, after = prefix + item.name, getattr(old, item.name), getattr(new, item.name)
        if item.metadata.get("operational"):
            continue
        if dataclasses.is_dataclass(after) and type(before) is type(after):
            yield from _differences(before, after, f"{name}.")
        elif before != after:
            yield name, before, after


def _encode(value: Any, hint: Any) -> Any:
    """A field's value; one of several classes says which, under "type"."""
    if dataclasses.is_dataclass(value):
        tag = {"type": _type_name(type(value))} if len(_classes(hint)) > 1 else {}
        return tag | to_json(value)
    return [_encode(item, None) for item in value] if isinstance(value, tuple) else value


def _classes(hint: Any) -> list[Any]:
    """The dataclasses that a field may hold."""
    return [option for option in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(option)]


def _type_name(cls: Any) -> str:
    return cls.__name__.removesuffix("Config")


def _decode_one_of(classes: list[Any], value: Any, where: str) -> Any:
    """A value that says its class under "type"; without it, the first is meant."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, got {value!r}")
    known = {_type_name(cls): cls for cls in classes}
    name = value.get("type", next(iter(known)))
    if name not in known:
        raise ValueError(f"{where}.type must be one of {', '.join(known)}, got {name!r}")
    return _decode_fields(known[name], {key: inner for key, inner in value.items() if key != "type"}, where)


def _decode(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`: one of some dataclasses, number, string, bool, Literal, tuple; or one or None."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _decode_fields(hint, value, where)
    if len(classes := _classes(hint)) > 1:
        return _decode_one_of(classes, value, where)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (option for option in options if option is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = options[:1] * len(value) if options[1:] == (...,) else options
        if len(inner) == len(value):
            return tuple(
                _decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(inner, value, strict=True))
            )
    if origin is Literal and any(value == option and type(value) is type(option) for option in options):
        return value
    if hint is float and isinstance(value, int | float) and type(value) is not bool and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    names = {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false", tuple: "a list"}
    expected = f"one of {', '.join(map(str, options))}" if origin is Literal else names[origin or hint]
    raise ValueError(f"{where} must be {expected}, got {value!r}")


def _decode_fields(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the configuration'} must be an object, got {value!r}")
    prefix, hints = f"{where}." if where else "", typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}
    for key in value.keys() - known.keys():
        nearest = difflib.get_close_matches(str(key), known, 1, 0)[0]
        raise ValueError(f"{prefix}{key} is not a field of this version; the nearest is {prefix}{nearest}")
    for name, item in known.items():
        if name not in value and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    return cls(**{name: _decode(hints[name], inner, prefix + name) for name, inner in value.items()})
