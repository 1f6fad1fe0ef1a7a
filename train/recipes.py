"""Named runs: functions that return a whole `RunConfig`, of which the command line overrides values.

The recipes of published models take over what is published of their training; what is not, or what we do in another
way, is said here:

- text is what `--data.path` names, as bytes unless `--data.tokenizer` names a tokenizer; without either, a model of
  any size trains on the embedded text, to try what it needs;
- the learning rate falls over all steps, GPT-3's over the first 260 of its 300 billion tokens;
- batches do not grow, those of GPT-3, Llama 3 and PaLM did;
- GPT-2's learning rates are not published, and are those of GPT-3's models of the same size; its run has a length that
  is known to do (300 billion tokens, about thirty times over the text that it was trained on);
- Llama 3.2's small models were distilled from larger ones, and here are trained on their own.

None of these was run at its published size.
"""

import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from etils import epath

from data.dataset import DataConfig
from data.sources import names_code
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.presets import PRESETS
from train.config import EvaluateConfig, RunConfig, SampleConfig, from_json
from train.mesh import MeshConfig
from train.objectives.causal_lm import CausalLMConfig
from train.objectives.masked_lm import MaskedLMConfig
from train.optimizer import OptimizerConfig

_MUST_BE_GIVEN = ""


def tiny() -> RunConfig:
    """What `make train` runs: a small Llama learns the text that Python carries, in about three minutes of two cores.

    jumok train

    Reached on two cores, in 2:56 minutes with the installation: 1.77 bits a byte of held-out text, where a unigram
    model of the same tokens has 2.96.
    """
    return RunConfig(
        name="tiny",
        model=_llama(num_layers=4, model_dim=192, num_heads=6, num_kv_heads=2, vocab_size=2048, max_length=128),
        data=DataConfig(tokenizer="sentencepiece", max_length=128),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=40),
        steps=600,
        batch_size=16,
        evaluate=EvaluateConfig(every=200, tokens=20_000),
        sample=SampleConfig(prompt="def "),
    )


def char_shakespeare() -> RunConfig:
    """The laptop setting of nanoGPT (github.com/karpathy/nanoGPT): characters of Shakespeare, 64 at a time.

    jumok train char_shakespeare --data.path shakespeare.txt

    Model, batch and steps are nanoGPT's; the learning rate is three times its 1e-3, with which this reaches 1.89.
    Reached on two cores, in 1:15 minutes: 1.763 nats a character of the held-out tenth.
    """
    return RunConfig(
        name="char_shakespeare",
        model=DecoderConfig(num_layers=4, model_dim=128, num_heads=4, vocab_size=66, max_length=64),
        data=DataConfig(path=_MUST_BE_GIVEN, tokenizer="characters", max_length=64),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100, final_fraction=0.05, b2=0.99),
        steps=2000,
        batch_size=12,
        evaluate=EvaluateConfig(every=250, tokens=20_000),
        sample=SampleConfig(prompt="\n", tokens=48),
    )


def books() -> RunConfig:
    """Books learned in 24 minutes of CPU time, on two cores.

    jumok train books --data.path books/ --data.valid-path other-books/

    Reached on 32 MB of classic books, held out those of other authors: 1.77 bits a byte, a unigram model's are 2.80.
    """
    return RunConfig(
        name="books",
        model=_llama(num_layers=4, model_dim=256, num_heads=8, num_kv_heads=4, vocab_size=4096, max_length=256),
        data=DataConfig(path=_MUST_BE_GIVEN, tokenizer="sentencepiece", max_length=256),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100, final_fraction=0.05),
        steps=2400,
        batch_size=8,
        evaluate=EvaluateConfig(every=400, tokens=50_000),
        sample=SampleConfig(prompt="It was ", tokens=200),
    )


def bert_tiny() -> RunConfig:
    """A small BERT learns the text that Python carries, masked.

    jumok train bert_tiny

    Its first 60 steps were run, and not yet the whole.
    """
    return RunConfig(
        name="bert_tiny",
        model=EncoderConfig(num_layers=4, model_dim=192, num_heads=6, vocab_size=2048, max_length=128),
        data=DataConfig(tokenizer="sentencepiece", max_length=128),
        objective=MaskedLMConfig(),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        steps=1000,
        batch_size=16,
        evaluate=EvaluateConfig(every=500, tokens=20_000),
        sample=SampleConfig(tokens=0),
    )


def smoke() -> RunConfig:
    """The smallest: shows in seconds that everything works together, on one device or on a mesh of fsdp 4 x tensor 2.

    JAX_NUM_CPU_DEVICES=8 jumok train smoke --mesh.fsdp 4 --mesh.tensor 2
    """
    return RunConfig(
        name="smoke",
        model=_llama(num_layers=2, model_dim=64, num_heads=8, num_kv_heads=4, vocab_size=257, max_length=128),
        data=DataConfig(max_length=128),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        steps=50,
        batch_size=8,
        sample=SampleConfig(tokens=40),
    )


def _llama(model_dim: int, **fields: Any) -> DecoderConfig:
    """A model of Llama's architecture, with tied embeddings, as suits a small one."""
    fields |= {"norm": "rms", "activation": "swiglu", "positions": "rope", "use_bias": False}
    return DecoderConfig(model_dim=model_dim, mlp_dim=_swiglu_size(model_dim), **fields)


def _swiglu_size(model_dim: int) -> int:
    """The width of a gated layer whose three matrices hold about as much as the two of a plain one of 4 model_dim."""
    return -(-8 * model_dim // 3 // 64) * 64


@dataclass(frozen=True)
class _Published:
    """How a model was trained: peak learning rate, rows of a batch and tokens of a row, all tokens, warm-up steps."""

    learning_rate: float
    batch_size: int
    length: int
    tokens: float
    warmup_steps: int
    fsdp: bool = False  # whether its state wants to be spread over the devices


_PUBLISHED = {
    "distilgpt2": _Published(6e-4, 512, 1024, 300e9, 715),
    "gpt2-124m": _Published(6e-4, 512, 1024, 300e9, 715),
    "gpt2-355m": _Published(3e-4, 512, 1024, 300e9, 715),
    "gpt2-774m": _Published(2.5e-4, 512, 1024, 300e9, 715),
    "gpt2-1.5b": _Published(2e-4, 512, 1024, 300e9, 715),
    "gpt3-125m": _Published(6e-4, 256, 2048, 300e9, 715),
    "gpt3-350m": _Published(3e-4, 256, 2048, 300e9, 715),
    "gpt3-760m": _Published(2.5e-4, 256, 2048, 300e9, 715),
    "gpt3-1.3b": _Published(2e-4, 512, 2048, 300e9, 358, fsdp=True),
    "gpt3-2.7b": _Published(1.6e-4, 512, 2048, 300e9, 358, fsdp=True),
    "gpt3-6.7b": _Published(1.2e-4, 1024, 2048, 300e9, 179, fsdp=True),
    "gpt3-13b": _Published(1e-4, 1024, 2048, 300e9, 179, fsdp=True),
    "gpt3-175b": _Published(0.6e-4, 1536, 2048, 300e9, 119, fsdp=True),
    "llama1-7b": _Published(3e-4, 2048, 2048, 1.0e12, 2000, fsdp=True),
    "llama1-13b": _Published(3e-4, 2048, 2048, 1.0e12, 2000, fsdp=True),
    "llama1-33b": _Published(1.5e-4, 2048, 2048, 1.4e12, 2000, fsdp=True),
    "llama1-65b": _Published(1.5e-4, 2048, 2048, 1.4e12, 2000, fsdp=True),
    "llama2-7b": _Published(3e-4, 1024, 4096, 2.0e12, 2000, fsdp=True),
    "llama2-13b": _Published(3e-4, 1024, 4096, 2.0e12, 2000, fsdp=True),
    "llama2-70b": _Published(1.5e-4, 1024, 4096, 2.0e12, 2000, fsdp=True),
    "llama3-8b": _Published(3e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3-70b": _Published(1.5e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3.1-8b": _Published(3e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3.1-70b": _Published(1.5e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3.1-405b": _Published(8e-5, 2048, 8192, 15e12, 8000, fsdp=True),
    "llama3.2-1b": _Published(3e-4, 1024, 8192, 9e12, 2000, fsdp=True),
    "llama3.2-3b": _Published(3e-4, 1024, 8192, 9e12, 2000, fsdp=True),
    "llama3.3-70b": _Published(1.5e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "palm-8b": _Published(1e-2, 512, 2048, 780e9, 10_000, fsdp=True),
    "palm-62b": _Published(1e-2, 512, 2048, 795e9, 10_000, fsdp=True),
    "palm-540b": _Published(1e-2, 2048, 2048, 780e9, 10_000, fsdp=True),
}


# Adafactor without factors; its rate is at the peak for `warmup_steps`, then falls with the root of the steps.
_PALM_OPTIMIZER = OptimizerConfig(
    name="adafactor",
    schedule="rsqrt",
    factored=False,
    b1=0.9,
    weight_decay=1.0,
    weight_decay_power=2.0,
    clip_norm=1.0,
)


def published(name: str) -> RunConfig:
    """The run of a published model, from the tables model/presets.py and, above, `_PUBLISHED`.

    jumok train gpt2-124m --data.path "text/*.jsonl" --data.tokenizer tokenizer/
    """
    run = _PUBLISHED[name]
    return RunConfig(
        name=name,
        model=replace(PRESETS[name], remat="full" if run.fsdp else "none"),
        data=DataConfig(max_length=run.length),
        optimizer=replace(
            _PALM_OPTIMIZER if name.startswith("palm") else OptimizerConfig(),
            learning_rate=run.learning_rate,
            warmup_steps=run.warmup_steps,
        ),
        objective=CausalLMConfig(z_loss=1e-4) if name.startswith("palm") else CausalLMConfig(),
        mesh=MeshConfig(data=1, fsdp=-1) if run.fsdp else MeshConfig(),
        steps=round(run.tokens / (run.batch_size * run.length)),
        batch_size=run.batch_size,
        evaluate=EvaluateConfig(every=1000, tokens=1_000_000),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "char_shakespeare": char_shakespeare,
    "books": books,
    "smoke": smoke,
    "bert_tiny": bert_tiny,
    **{name: partial(published, name) for name in _PUBLISHED},
}
DEFAULT = "tiny"


def needs(config: RunConfig) -> list[str]:
    """The options that a user has to give before this runs, without "--"."""
    data = config.data
    return ["data.path"] if data.path == _MUST_BE_GIVEN and not (data.mixture or data.source_path) else []


def find_recipe(name: str) -> RunConfig:
    """The run of a recipe's name, of `module:function`, or of a config.json.

    Raises:
        ValueError: there is no such recipe (the nearest is named), or it gives no configuration.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".json"):
        return _read(epath.Path(name))
    if ":" in name:
        return _call(*name.split(":", 1))
    nearest = difflib.get_close_matches(name, RECIPES, 1, 0)[0]
    raise ValueError(
        f"there is no recipe {name!r}; the nearest is {nearest!r}, `jumok recipes` lists all, and module:function or a "
        "config.json do as well"
    )


def _read(path: epath.Path) -> RunConfig:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a configuration: {error}") from None
    config = from_json(RunConfig, value, str(path))
    data = config.data
    for named in (*(portion.path for portion in data.portions()), data.valid_path or ""):
        if names_code(named):
            raise ValueError(f"{path}: data.path names code, {named}, and what a file names is not run; use a recipe")
    return config


def _call(module: str, function: str) -> RunConfig:
    sys.path.append(os.getcwd())  # behind everything else, so that the user's data/ folder is not our package
    try:
        recipe = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the recipe {module}:{function} cannot be found: {error}") from None
    config = recipe()
    if not isinstance(config, RunConfig):
        raise ValueError(f"the recipe {module}:{function} must return a RunConfig, got {type(config).__name__}")
    return config
