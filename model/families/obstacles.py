"""What of a model an architecture of Hugging Face fixes."""

from typing import Any

from model.config import StackConfig

ANY = object()  # a field whose value an architecture takes from its configuration

_USUAL = {
    "norm": "layer",
    "norm_position": "before",
    "norm_bias": True,
    "activation": "gelu_tanh",
    "positions": "learned",
    "rope_scaling": None,
    "use_bias": True,
    "window": None,
    "logit_scale": 1.0,
}


def divided_heads(config: StackConfig) -> list[str]:
    """What would have to be otherwise where heads share out the width, each with keys and values of its own."""
    found = [] if config.kv_heads == config.num_heads else [f"num_kv_heads={config.num_heads}"]
    return (
        found if config.head_size * config.num_heads == config.model_dim else [*found, "head_dim=model_dim/num_heads"]
    )


def fixed_fields(config: StackConfig, **fixed: Any) -> list[str]:
    """The fields of `config` that would have to be otherwise, as "name=value": as `fixed` says, or else as usual."""
    derived = {
        "has_attention_bias": config.use_bias,
        "value_head_size": config.head_size,
        "score_scale": config.head_size**-0.5,
    }
    needed = _USUAL | derived | fixed
    names = {
        "kv_heads": "num_kv_heads",
        "has_attention_bias": "attention_bias",
        "value_head_size": "value_head_dim",
        "score_scale": "attention_scale",
    }
    return [
        f"{names.get(name, name)}={value}"
        for name, value in needed.items()
        if value is not ANY and getattr(config, name) != value
    ]
