"""Writes the golden files beside it: what transformers computes for tiny random models, and Llama's rotary frequencies.

python tests/golden/make_golden.py (needs the extra `parity`); made with torch 2.13.0 and transformers 5.23.0.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

GOLDEN = Path(__file__).resolve().parent
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}

# Vocabularies that need padding, fewer key/value heads than heads, heads that are not model_dim / num_heads.
MODELS: dict[str, tuple[Any, Any]] = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=70, n_positions=24, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1),
    ),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=70,
            max_position_embeddings=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
            rope_parameters=LLAMA3 | {"original_max_position_embeddings": 16},
        ),
    ),
    "llama_tied": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=90,
            max_position_embeddings=32,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        ),
    ),
}
MODELS["palm"] = (
    CohereForCausalLM,
    CohereConfig(
        vocab_size=70,
        max_position_embeddings=64,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=6,
        logit_scale=0.25,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        pad_token_id=None,  # its row would have no gradient
        bos_token_id=0,
        eos_token_id=1,
    ),
)
MODELS["gpt_neo"] = (  # dense and banded layers in turns
    GPTNeoForCausalLM,
    GPTNeoConfig(
        vocab_size=70,
        max_position_embeddings=24,
        hidden_size=16,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=5,
        bos_token_id=0,
        eos_token_id=1,
    ),
)
GRADIENTS = {
    "gpt2": ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"),
    "llama": ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.gate_proj.weight"),
    "llama_tied": ("model.embed_tokens.weight",),
    "gpt_neo": ("transformer.wte.weight", "transformer.h.1.attn.attention.k_proj.weight"),
    "palm": ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"),
}


def golden(name: str) -> dict[str, np.ndarray]:
    """A model's config.json, weights, tokens, logits, loss and some gradients."""
    make, config = MODELS[name]
    torch.manual_seed(7)
    config._attn_implementation = "eager"
    model = make(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and scales too, and large enough to matter
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tokens = torch.randint(0, config.vocab_size, (2, 20))
    outputs = model(tokens, labels=tokens)
    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        values = json.loads((Path(folder) / "config.json").read_text())
        stored = {f"weight/{n}": a for n, a in load_file(Path(folder) / "model.safetensors").items()}
    gradients = {f"gradient/{n}": parameters[n].grad.numpy() for n in GRADIENTS[name]}
    facts = {"tokens": tokens.numpy().astype(np.int32), "logits": outputs.logits, "loss": outputs.loss}
    plain = {n: a.detach().numpy() if isinstance(a, torch.Tensor) else a for n, a in facts.items()}
    return {"config": np.array(json.dumps(values)), **plain, **stored, **gradients}


def rope_frequencies() -> dict[str, np.ndarray]:
    """The rotary frequencies of the Llamas that stretch them."""
    scaling = LLAMA3 | {"rope_theta": 500_000.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    frequencies = {}
    for name, factor, head_dim in (("llama3.1-8b", 8.0, 128), ("llama3.2-1b", 32.0, 64), ("llama3.2-3b", 32.0, 128)):
        parameters = scaling | {"factor": factor}
        config = LlamaConfig(head_dim=head_dim, max_position_embeddings=131_072, rope_parameters=parameters)
        frequencies[name] = ROPE_INIT_FUNCTIONS["llama3"](config)[0].numpy()
    return frequencies


def main() -> None:
    """Writes every file."""
    for name in MODELS:
        np.savez_compressed(GOLDEN / f"{name}.npz", allow_pickle=False, **golden(name))
    np.savez_compressed(GOLDEN / "rope.npz", allow_pickle=False, **rope_frequencies())


if __name__ == "__main__":
    main()
