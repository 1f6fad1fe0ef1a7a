"""GPT-2 by hand in PyTorch, as it is commonly written: eager, fused attention and optimizer, a preallocated cache."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model.decoder import DecoderConfig
from model.families import gpt2
from model.families.weights import Layout
from model.parameters import Params
from train.state import Blueprint

Cache = list[tuple[torch.Tensor, torch.Tensor]]


def tensors_of(plan: Blueprint, params: Params) -> dict[str, torch.Tensor]:
    """Our weights under the names of Hugging Face's GPT2LMHeadModel."""
    layout = Layout(gpt2.WEIGHTS, plan.declared, plan.config.vocab_size)
    return {name: torch.from_numpy(array.copy()) for name, array in layout.to_hugging_face(params)}


class Block(nn.Module):
    """A pre-norm layer."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        width, self.heads = config.model_dim, config.num_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(
        self, x: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None = None, start: int = 0
    ) -> torch.Tensor:
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, -1).transpose(1, 2)
            for part in self.attn["c_attn"](self.ln_1(x)).split(width, dim=2)
        )
        if cache is not None:
            for stored, new in zip(cache, (k, v), strict=True):
                stored[:, :, start : start + length] = new
            k, v = (stored[:, :, : start + length] for stored in cache)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.attn["c_proj"](attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """The model with the weights of ours."""

    def __init__(self, plan: Blueprint, params: Params):
        super().__init__()
        config = self.config = plan.config
        self.wte = nn.Embedding(config.vocab_size, config.model_dim)
        self.wpe = nn.Embedding(config.max_length, config.model_dim)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.model_dim)
        self.load_state_dict(
            {
                name.removeprefix(gpt2.PREFIX): tensor.T.contiguous() if ".c_" in name and tensor.ndim == 2 else tensor
                for name, tensor in tensors_of(plan, params).items()
            }
        )

    def forward(self, tokens: torch.Tensor, caches: Cache | None = None, start: int = 0) -> torch.Tensor:
        """The normed hidden states [rows, length, width]."""
        x = self.wte(tokens) + self.wpe(torch.arange(start, start + tokens.shape[1]))
        for number, block in enumerate(self.h):
            x = block(x, caches and caches[number], start)
        return self.ln_f(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the next token."""
        return F.linear(hidden, self.wte.weight)

    @torch.inference_mode()
    def greedy(self, prompts: np.ndarray, new_tokens: int) -> np.ndarray:
        """The most probable tokens after prompts of one length, [rows, new_tokens]."""
        config, (rows, length) = self.config, prompts.shape
        shape = (rows, config.num_heads, length + new_tokens, config.head_size)
        caches: Cache = [(torch.empty(shape), torch.empty(shape)) for _ in self.h]
        tokens, start, drawn = torch.from_numpy(prompts), 0, []
        for _ in range(new_tokens):
            hidden = self(tokens, caches, start)
            start += tokens.shape[1]
            tokens = self.logits(hidden[:, -1:]).argmax(-1)
            drawn.append(tokens)
        return torch.cat(drawn, dim=1).numpy()


class Trainer:
    """A training step on one batch: AdamW as ours, with clipping and decay of the matrices."""

    def __init__(
        self, model: GPT2, tokens: np.ndarray, targets: np.ndarray, rate: float, b2: float, decay: float, clip: float
    ):
        self.model, self.clip = model, clip
        self.tokens, self.targets = (torch.from_numpy(a.astype(np.int64)) for a in (tokens, targets))
        matrices = [p for name, p in model.named_parameters() if ".c_" in name and p.ndim == 2]
        others = [p for name, p in model.named_parameters() if not (".c_" in name and p.ndim == 2)]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, b2), eps=1e-8, fused=True)

    def step(self) -> torch.Tensor:
        """The loss before the update."""
        self.optimizer.zero_grad()
        logits = self.model.logits(self.model(self.tokens))
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()
