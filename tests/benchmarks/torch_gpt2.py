"""A training step of GPT-2 in PyTorch: eager, with fused attention and a fused optimizer."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.decoder import DecoderConfig
from train.optimizer import OptimizerConfig

torch: Any = importlib.import_module("torch")  # not by `import`: types are checked where it is not installed
F = torch.nn.functional


class Trainer:
    """Steps on one batch [rows, length + 1], by our optimizer's settings, from `tensors` named as Hugging Face's are.

    Theirs are stored (in, out); here they are turned to (out, in), as PyTorch's own layers have them.
    """

    def __init__(self, model: DecoderConfig, tensors: Mapping[str, Any], stream: np.ndarray, config: OptimizerConfig):
        self.model, self.clip_norm = model, config.clip_norm
        self.tokens, self.targets = (torch.from_numpy(a.astype(np.int64)) for a in (stream[:, :-1], stream[:, 1:]))
        matrices = {name for name, tensor in tensors.items() if ".h." in name and tensor.ndim == 2}
        turned = {name: t.T.contiguous() if name in matrices else t for name, t in tensors.items()}
        self.weights = {name: tensor.requires_grad_() for name, tensor in turned.items()}
        decayed = [weight for name, weight in self.weights.items() if name in matrices]
        others = [weight for name, weight in self.weights.items() if name not in matrices]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        betas = (config.b1, config.b2)
        self.optimizer = torch.optim.AdamW(groups, config.learning_rate, betas, config.epsilon, fused=True)

    def step(self) -> float:
        """The loss before the update."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self._logits().flatten(0, 1), self.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.clip_norm)
        self.optimizer.step()
        return loss.item()

    def _logits(self) -> Any:
        width, (rows, length) = self.model.model_dim, self.tokens.shape

        def linear(name: str, x: Any) -> Any:
            return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

        def norm(name: str, x: Any) -> Any:
            return F.layer_norm(x, (width,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

        embedding = self.weights["transformer.wte.weight"]
        x = F.embedding(self.tokens, embedding) + self.weights["transformer.wpe.weight"][:length]
        for number in range(self.model.num_layers):
            layer = f"transformer.h.{number}"
            parts = linear(f"{layer}.attn.c_attn", norm(f"{layer}.ln_1", x)).split(width, dim=2)
            q, k, v = (part.view(rows, length, self.model.num_heads, -1).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            x = x + linear(f"{layer}.attn.c_proj", attended.reshape(rows, length, width))
            between = F.gelu(linear(f"{layer}.mlp.c_fc", norm(f"{layer}.ln_2", x)), approximate="tanh")
            x = x + linear(f"{layer}.mlp.c_proj", between)
        return F.linear(norm("transformer.ln_f", x), embedding)
