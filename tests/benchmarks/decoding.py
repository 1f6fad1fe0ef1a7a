"""Greedy decoding of GPT-2 124M with a cache, beside transformers' generate and a loop by hand in PyTorch."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleaved

from model.decode import Sampling, extend, start, unstack
from model.families import gpt2
from model.parameters import Params, merge
from model.presets import PRESETS
from train.mesh import MeshConfig, make_mesh
from train.state import Blueprint, blueprint

_PROMPT, _NEW, _CHUNK = 16, 64, 16  # tokens; a chunk is one call, as in train/generate.py
Write = Callable[[], np.ndarray]


def measure(batch_size: str, repetitions: int) -> dict[str, Any]:
    """The row of a batch of prompts: seconds a continuation of all of them, the reading of the prompts included."""
    rows, plan = int(batch_size), blueprint(PRESETS["gpt2-124m"])
    prompts = np.random.default_rng(0).integers(0, plan.config.vocab_size, (rows, _PROMPT), np.int32)
    params = jax.jit(partial(plan.init, 0))()
    systems: dict[str, Write] = {"jumok": _ours(plan, params, prompts)}
    if jax.default_backend() == "cpu" and importlib.util.find_spec("torch"):
        systems |= _theirs(plan, params, prompts)
    drawn = {name: write() for name, write in systems.items()}
    equal = [f"{name} {(tokens == drawn['jumok']).mean():.1%}" for name, tokens in drawn.items() if name != "jumok"]
    return {
        "what": f"{rows} prompts of {_PROMPT} tokens, {_NEW} new ones each, float32",
        "columns": [("tokens / CPU-s", "cpu", rows * _NEW), ("tokens / s", "wall", rows * _NEW)],
        "samples": interleaved(systems, repetitions),
        "agreement": f"tokens equal to ours: {', '.join(equal)}" if equal else None,
    }


def _ours(plan: Blueprint, params: Params, prompts: np.ndarray) -> Write:
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        model, layers = jax.jit(lambda params: unstack(merge(plan.skeleton, params)))(params)
    lengths, no_stop = np.full(len(prompts), _PROMPT, np.int32), jnp.array([-2], jnp.int32)
    cache_length = -(-(_PROMPT + _NEW) // 64) * 64

    def write() -> np.ndarray:
        with jax.set_mesh(mesh):
            decoding = start(model, layers, jnp.asarray(prompts), jnp.asarray(lengths), cache_length=cache_length)
            pieces = []
            for _ in range(0, _NEW, _CHUNK):
                decoding, tokens, _ = extend(
                    model, layers, decoding, jax.random.key(0), no_stop, num_tokens=_CHUNK, sampling=Sampling(0)
                )
                pieces.append(np.asarray(tokens))
        return np.concatenate(pieces, axis=1)

    return write


def _theirs(plan: Blueprint, params: Params, prompts: np.ndarray) -> dict[str, Write]:
    import torch
    from torch_gpt2 import GPT2, tensors_of

    tokens = prompts.astype(np.int64)
    systems: dict[str, Write] = {"torch": partial(GPT2(plan, params).greedy, tokens, _NEW)}
    if importlib.util.find_spec("transformers"):
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(**gpt2.to_hugging_face_config(plan.config), bos_token_id=None, eos_token_id=None)
        reference = GPT2LMHeadModel(config).eval()
        reference.load_state_dict(tensors_of(plan, params), strict=False)
        batch = torch.from_numpy(tokens)

        def generate() -> np.ndarray:
            whole = reference.generate(
                batch, attention_mask=torch.ones_like(batch), max_new_tokens=_NEW, do_sample=False, pad_token_id=0
            )
            return whole[:, _PROMPT:].numpy()

        systems["transformers"] = generate
    return systems
