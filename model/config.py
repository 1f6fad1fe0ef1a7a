"""What a stack of transformer blocks is: the fields that every family shares."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from model.positions import RopeScaling

GATED = ("swiglu", "geglu")  # activations with a gate: two projections in, and no biases
_OPERATIONAL = {"operational": True}  # may change on resume: says how, not what, is computed

# What of a layer is held for its gradient, and not computed again, from most to least. dots: what is projected and
# attended, but what goes back into the residual stream; attention: that without the feed-forward layer; projections:
# all that attention projects; qkv: queries, keys and values, which `offload` holds in the host's memory.
Remat = Literal["none", "dots", "attention", "projections", "qkv", "offload", "full"]

_COUNTS = (
    *("num_layers", "model_dim", "num_heads", "kv_heads", "head_size", "value_head_size", "mlp_size"),
    *("window", "window_every", "unroll"),
)


@dataclass(frozen=True)
class StackConfig:
    """The width, depth and parts of a stack. Fields that are None follow from the others; `resolved` fills them in."""

    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int | None = None  # None: num_heads
    head_dim: int | None = None  # of queries and keys; None: model_dim / num_heads
    value_head_dim: int | None = None  # None: head_dim
    mlp_dim: int | None = None  # None: 4 model_dim
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["before", "after", "parallel"] = "before"  # of each sublayer; parallel: one for both
    norm_bias: bool = True  # of layer norms
    norm_epsilon: float = 1e-5
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"] = "gelu_tanh"
    positions: Literal["learned", "sinusoidal", "rope", "relative", "none"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    relative_buckets: int = 32
    relative_distance: int = 128  # from which on all distances share the last bucket
    use_bias: bool = True
    attention_bias: bool | None = None  # None: use_bias
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    window: int | None = None  # keys that a token of a banded layer sees, itself included; None: no layer is banded
    window_every: int = 2  # every how many-th layer is banded
    share_layers: bool = False  # one layer's weights, applied num_layers times
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init: Literal["gpt2", "normal", "fan_in"] = "gpt2"
    init_std: float = 0.02
    attention: Literal["auto", "reference", "xla", "splash", "cudnn"] = field(default="auto", metadata=_OPERATIONAL)
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
    def value_head_size(self) -> int:
        """Width of one head's values."""
        return self.head_size if self.value_head_dim is None else self.value_head_dim

    @property
    def has_attention_bias(self) -> bool:
        """Whether the projections of attention have biases."""
        return self.use_bias if self.attention_bias is None else self.attention_bias

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's window."""
        banded = (self.window is not None and (i + 1) % self.window_every == 0 for i in range(self.num_layers))
        return tuple(self.window if is_banded else None for is_banded in banded)

    @property
    def mlp_size(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.model_dim if self.mlp_dim is None else self.mlp_dim

    def initial_std(self, inputs: int, *, back: bool = False) -> float:
        """Initial standard deviation of a projection from `inputs` numbers; `back` where into the residual stream.

        normal: init_std. gpt2: the same, but smaller on the way back, by 1 / sqrt(2 num_layers) (Radford et al. 2019).
        fan_in: 1 / sqrt(inputs) (PaLM, Chowdhery et al. 2022; T5).
        """
        if self.init == "fan_in":
            return inputs**-0.5
        return self.init_std / (2 * self.num_layers) ** 0.5 if back and self.init == "gpt2" else self.init_std

    @property
    def embedding_std(self) -> float:
        """Initial standard deviation of embeddings: 1 with fan_in, and otherwise init_std."""
        return 1.0 if self.init == "fan_in" else self.init_std

    def resolved(self) -> Self:
        """The same configuration with nothing left to follow from other fields."""
        return dataclasses.replace(
            self,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_size,
            value_head_dim=self.value_head_size,
            mlp_dim=self.mlp_size,
            attention_bias=self.has_attention_bias,
            attention_scale=self.score_scale,
        )

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no model can have."""
        check_least(self, 1, *_COUNTS)
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
        if self.activation in GATED and self.use_bias:
            raise ValueError(
                f"model.use_bias must be off with the {self.activation} activation; pass --model.no-use-bias"
            )
        if self.positions == "relative" and not 2 <= self.relative_buckets // 2 < self.relative_distance:
            raise ValueError(
                f"model.relative_buckets={self.relative_buckets} must be at least 4, and half of it less than "
                f"model.relative_distance={self.relative_distance}"
            )

    def _check_choices(self, structure: str, choices: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse values of the fields in `choices` that the structure, named in the plural, does not have."""
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}={getattr(self, name)} is not for {structure}; take one of {allowed}")


def check_least(config: Any, least: int, *names: str) -> None:
    """Raise ValueError, in one sentence, for a number of `config` below `least`; those that are None are left out."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"model.{name}={value} must be at least {least}")


def check_part(name: str, part: Any) -> None:
    """Validate the configuration that is the field `name` of another: what it raises then names its own fields so."""
    try:
        part.validate()
    except ValueError as error:
        raise ValueError(str(error).replace("model.", f"model.{name}.")) from None


def check_classes(names: tuple[str, ...], num_classes: int) -> None:
    """Raise ValueError, in one sentence, for names that do not name every class once; none at all are allowed."""
    if names and len(names) != num_classes:
        raise ValueError(
            f"model.classes names {len(names)} classes, and there are model.num_classes={num_classes}; name all or none"
        )
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"model.classes has the name {repeated!r} twice; give each class a name of its own")
