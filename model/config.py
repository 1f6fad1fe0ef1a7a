"""What a stack of transformer blocks is: the fields that every family shares."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, Self

from model.positions import RopeScaling

_OPERATIONAL = {"operational": True}  # may change on resume: says how, not what, is computed

Remat = Literal["none", "dots", "attention", "full"]


@dataclass(frozen=True)
class StackConfig:
    """The width, depth and parts of a stack. Fields that are None follow from the others; `resolved` fills them in."""

    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int | None = None  # None: num_heads
    head_dim: int | None = None  # None: model_dim / num_heads
    mlp_dim: int | None = None  # None: 4 model_dim
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    activation: Literal["gelu_tanh", "swiglu"] = "gelu_tanh"
    positions: Literal["learned", "rope"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    use_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02  # projections back into the residual stream start smaller, by 1 / sqrt(2 num_layers) (GPT-2)
    attention: Literal["reference", "xla"] = field(default="xla", metadata=_OPERATIONAL)
    remat: Remat = field(default="none", metadata=_OPERATIONAL)
    unroll: int = field(default=1, metadata=_OPERATIONAL)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.model_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_size(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.model_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def out_std(self) -> float:
        """Initial standard deviation of the projections back into the residual stream."""
        return self.init_std / (2 * self.num_layers) ** 0.5

    def resolved(self) -> Self:
        """The same configuration with nothing left to follow from other fields."""
        return dataclasses.replace(self, num_kv_heads=self.kv_heads, head_dim=self.head_size, mlp_dim=self.mlp_size)

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no model can have."""
        for name in ("num_layers", "model_dim", "num_heads", "kv_heads", "head_size", "mlp_size", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.head_dim is None and self.model_dim % self.num_heads:
            raise ValueError(
                f"model.model_dim={self.model_dim} must be a multiple of model.num_heads={self.num_heads}; "
                f"try model_dim {-(-self.model_dim // self.num_heads) * self.num_heads}, or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} must be a multiple of model.num_kv_heads={self.kv_heads}"
            )
        if self.positions == "rope" and self.head_size % 2:
            raise ValueError(
                f"model.head_dim={self.head_size} must be even, since rotary positions turn pairs of dimensions"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 0 and less than 1")
        if self.activation == "swiglu" and self.use_bias:
            raise ValueError("model.use_bias must be off with the swiglu activation; pass --model.no-use-bias")
