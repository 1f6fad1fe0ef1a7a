"""GPT-2 in PyTorch: eager, with fused attention."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch_training import Trainer, on_device, torch

from model.decoder import DecoderConfig
from train.optimizer import OptimizerConfig

F = torch.nn.functional


def gpt2_trainer(
    model: DecoderConfig, tensors: Mapping[str, Any], stream: np.ndarray, config: OptimizerConfig
) -> Trainer:
    """Steps on one batch [rows, length + 1], from `tensors` named as Hugging Face's are."""
    weights = {name: tensor.requires_grad_() for name, tensor in turned(tensors).items()}
    matrices = {name for name, tensor in weights.items() if ".h." in name and tensor.ndim == 2}
    return Trainer(gpt2_loss(model, weights, stream), weights, matrices, config)


def turned(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of Hugging Face's, whose matrices are (in, out), with these (out, in), as PyTorch's own layers are."""
    matrices = {name for name, tensor in tensors.items() if ".h." in name and tensor.ndim == 2}
    return {name: tensor.T.contiguous() if name in matrices else tensor for name, tensor in tensors.items()}


def gpt2_loss(model: DecoderConfig, weights: Mapping[str, Any], stream: np.ndarray) -> Callable[[], Any]:
    """A function that computes the mean loss of a batch [rows, length + 1]."""
    tokens, targets = map(on_device, (stream[:, :-1], stream[:, 1:]))
    return lambda: F.cross_entropy(_logits(model, weights, tokens).flatten(0, 1), targets.flatten())


def _logits(model: DecoderConfig, weights: Mapping[str, Any], tokens: Any) -> Any:
    width, (rows, length) = model.model_dim, tokens.shape

    def linear(name: str, x: Any) -> Any:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Any) -> Any:
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    embedding = weights["transformer.wte.weight"]
    x = F.embedding(tokens, embedding) + weights["transformer.wpe.weight"][:length]
    for number in range(model.num_layers):
        layer = f"transformer.h.{number}"
        parts = linear(f"{layer}.attn.c_attn", norm(f"{layer}.ln_1", x)).split(width, dim=2)
        q, k, v = (part.view(rows, length, model.num_heads, -1).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + linear(f"{layer}.attn.c_proj", attended.reshape(rows, length, width))
        between = F.gelu(linear(f"{layer}.mlp.c_fc", norm(f"{layer}.ln_2", x)), approximate="tanh")
        x = x + linear(f"{layer}.mlp.c_proj", between)
    return F.linear(norm("transformer.ln_f", x), embedding)
