"""The rows: what is measured, and beside what. PyTorch stands beside where it is installed.

Each function returns "what" in words; the "systems" to be called in turn, ours first; "columns" of (header, clock,
amount a call, or None for milliseconds a call); and "agreement", the proof that all systems do the same work.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import DataConfig
from model.cost import train_flops_per_row
from model.decode import Sampling, extend, start, unstack
from model.decoder import DecoderConfig
from model.families import gpt2
from model.families.weights import Layout
from model.parameters import Params, merge
from model.presets import PRESETS, Family
from train.config import RunConfig, resolve
from train.hardware import peak_flops
from train.mesh import MeshConfig, make_mesh, place_batch
from train.optimizer import OptimizerConfig
from train.program import Program
from train.state import Blueprint, blueprint

CPU = jax.default_backend() == "cpu"
TORCH = importlib.util.find_spec("torch") is not None and (
    CPU or (jax.default_backend() == "gpu" and importlib.import_module("torch").cuda.is_available())
)
if TORCH:
    from torch_gpt2 import gpt2_trainer
    from torch_training import DEVICE, awaited, on_device, torch

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0)

_SHOWN = ("source_tokens", "tokens", "places", "images")  # the arrays of a batch that say how much work it is
_SMALL = DecoderConfig(num_layers=4, model_dim=128, num_heads=4, vocab_size=66, max_length=64)
_LARGER = DecoderConfig(num_layers=6, model_dim=384, num_heads=6, vocab_size=66, max_length=256)
SIZES = {  # with the rows of a batch, each as long as the model allows
    "4x128": (_SMALL, 12),
    "6x384": (_LARGER, 8),
    "6x384-v8192": (replace(_LARGER, vocab_size=8192), 8),
    "gpt2-124m": (replace(PRESETS["gpt2-124m"], dropout=0.0, attention_dropout=0.0), 1 if CPU else 32),
    "llama-1b": (replace(PRESETS["llama3.2-1b"], max_length=2048, remat="attention"), 4),
}


def machine(_: str) -> dict[str, Any]:
    """The device and the packages."""
    packages = [name for name in ("jax", "torch", "transformers") if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return {"platform": jax.default_backend(), "device": jax.devices()[0].device_kind, "versions": versions}


def matmul(size: str) -> dict[str, Any]:
    """The product that all else stands on: what of the other ratios is the libraries' alone."""
    a, b = np.random.default_rng(0).standard_normal((2, int(size), int(size)), np.float32)
    multiply, ours = jax.jit(jnp.matmul), (jnp.asarray(a), jnp.asarray(b))
    systems: dict[str, Callable] = {"jumok": lambda: multiply(*ours).block_until_ready()}
    if TORCH:
        systems["torch"] = awaited(partial(torch.matmul, on_device(a), on_device(b)))
    operations = 2 * int(size) ** 3 / 1e9
    columns = [("GFLOP / CPU-s", "cpu", operations), ("GFLOP / s", "wall", operations)]
    return {"what": f"{size}^3, float32", "systems": systems, "columns": columns}


def train(size: str) -> dict[str, Any]:
    """A step of `jumok train` on a decoder."""
    model, (stream, batch) = SIZES[size][0], text_batch(size)

    def theirs(plan: Blueprint, params: Params) -> dict[str, Any]:
        return {"torch": gpt2_trainer(model, tensors(gpt2, plan, params), stream, OPTIMIZER)}

    return training(text_run(size), batch, ("tokens", batch["tokens"].size), theirs if TORCH else None)


def text_run(size: str) -> RunConfig:
    """A run on a decoder of this size."""
    model, rows = SIZES[size]
    return RunConfig(model, DataConfig(max_length=model.max_length, packing="contiguous"), batch_size=rows)


def text_batch(size: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Random tokens for a decoder of this size, [rows, length + 1], and the same as a batch."""
    model, rows = SIZES[size]
    stream = np.random.default_rng(0).integers(0, model.vocab_size, (rows, model.max_length + 1), np.int32)
    scored = np.ones((rows, model.max_length), bool)
    return stream, one_document(stream[:, :-1]) | {"targets": stream[:, 1:], "scored": scored}


def one_document(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of text as packing gives those of one document."""
    ones = np.ones(tokens.shape, np.int32)
    return {"tokens": tokens, "segments": ones, "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1}


def training(
    config: RunConfig,
    batch: Mapping[str, np.ndarray],
    counted: tuple[str, int],
    theirs: Callable[[Blueprint, Params], Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """A step of `jumok train`, AdamW with clipping, on a batch that lies ready, with so many of what is counted.

    `theirs` gives, by name, trainers of the same model from the same weights; each has to learn what we learn.
    """
    config = resolve(replace(config, optimizer=OPTIMIZER))
    rows, (unit, amount) = config.batch_size, counted
    program = Program.of(config, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    batch = program.inputs(dict(batch))
    row = {name: array[0] for name, array in batch.items()}
    compiled = program.compile_step(row)
    placed = place_batch(program.mesh, rows, lambda places: {name: array[places] for name, array in batch.items()})
    state = program.first_state()
    others = {} if theirs is None else theirs(program.plan, state.params)

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, placed)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    columns = [("CPU ms / step", "cpu", None), ("ms / step", "wall", None), (f"{unit} / s", "wall", amount)]
    if peak := peak_flops(jax.devices()[0]):
        columns.append(("% MFU", "wall", 100 * rows * train_flops_per_row(config.model, row) / peak))
    shapes = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in batch.items() if name in _SHOWN)
    vocabulary = f", vocabulary {size}" if (size := getattr(config.model, "vocab_size", 0)) else ""
    result: dict[str, Any] = {"what": f"{shapes}{vocabulary}, {config.precision}", "columns": columns}
    systems = {"jumok": step} | {name: trainer.step for name, trainer in others.items()}
    if others:
        losses = np.array([[call() for call in systems.values()] for _ in range(3)])
        apart = np.max(np.abs(losses[:, :1] / losses - 1))
        if not apart < (1e-4 if config.precision == "float32" else 0.02):
            raise ArithmeticError(f"{', '.join(systems)} do not learn the same: losses {losses.tolist()}")
        result["agreement"] = f"losses of the first three steps agree to {apart:.0e}"
    return result | {"systems": systems}


def decode(batch_size: str) -> dict[str, Any]:
    """GPT-2 124M continues prompts, greedily, with a cache; reading the prompts is part of it."""
    rows, length, new, plan = int(batch_size), 16, 64, blueprint(PRESETS["gpt2-124m"])
    prompts = np.random.default_rng(0).integers(0, plan.config.vocab_size, (rows, length))
    params = jax.jit(partial(plan.init, 0))()
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        model, layers = jax.jit(lambda params: unstack(merge(plan.skeleton, params)))(params)
    arguments, no_stop = (jnp.asarray(prompts, jnp.int32), jnp.full(rows, length)), jnp.array([-2])

    def write() -> np.ndarray:  # as train/generate.py does
        with jax.set_mesh(mesh):
            decoding, pieces = start(model, layers, *arguments, cache_length=128), []
            while len(pieces) < new // 16:
                decoding, tokens, _ = extend(
                    model, layers, decoding, jax.random.key(0), no_stop, num_tokens=16, sampling=Sampling(0)
                )
                pieces.append(np.asarray(tokens))
        return np.concatenate(pieces, axis=1)

    systems: dict[str, Callable] = {"jumok": write}
    if TORCH and importlib.util.find_spec("transformers"):
        transformers = importlib.import_module("transformers")
        values = gpt2.to_hugging_face_config(plan.config) | {"bos_token_id": None, "eos_token_id": None}
        reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).eval().to(DEVICE)
        reference.load_state_dict(tensors(gpt2, plan, params), strict=False)  # its head is tied
        inputs = {
            "inputs": on_device(prompts),
            "attention_mask": on_device(np.ones((rows, length), np.int32)),
            "pad_token_id": 0,
        }
        generate = partial(reference.generate, **inputs, max_new_tokens=new, do_sample=False)
        systems["transformers"] = lambda: generate()[:, length:].cpu().numpy()
    drawn = {name: call() for name, call in systems.items()}
    equal = [f"{(tokens == drawn['jumok']).mean():.1%} of {name}'s tokens equal ours" for name, tokens in drawn.items()]
    return {
        "what": f"{rows} x {length} tokens read and {rows} x {new} written, float32",
        "systems": systems,
        "columns": [("tokens / CPU-s", "cpu", rows * new), ("tokens / s", "wall", rows * new)],
        "agreement": ", ".join(equal[1:]),
    }


def tensors(family: Family, plan: Blueprint, params: Mapping[str, Any]) -> dict[str, Any]:
    """Our weights as Hugging Face's class of the family names and stores them."""
    layout = Layout(family.weights(plan.config), plan.declared, getattr(plan.config, "vocab_size", 0))
    return {name: on_device(array.copy()) for name, array in layout.to_hugging_face(params)}
