"""What BERT and its kin have in common in Hugging Face's folders: tensors, keys of config.json, and limits.

A family has one architecture for each head. What a folder says of the stack of layers, ViT's says too.
"""

from collections.abc import Mapping
from typing import Any

from model.config import StackConfig
from model.encoder import CLASSIFYING, EncoderConfig, Head
from model.families import labels
from model.families.keys import REQUIRED, Keys
from model.families.obstacles import ANY, divided_heads, fixed_fields
from model.families.weights import Tensor, linear, norm, projections

ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_AS_THEY_ARE: Mapping[str, str] = {}


def body(
    root: str,
    layer: str,
    *,
    attention: tuple[str, str, str, str] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    mlp: tuple[str, str] = ("intermediate.dense", "output.dense"),
    norms: tuple[str, str] = ("attention.output.LayerNorm", "output.LayerNorm"),
) -> tuple[Tensor, ...]:
    """Embeddings and layers. `attention` names query, key, value and output within a `layer`, `mlp` in and out."""
    table = f"{root}.embeddings.{{}}_embeddings.weight"
    return (
        Tensor(table.format("word"), ("embedding.table",), inputs=1),
        Tensor(table.format("position"), ("positions",), inputs=1),
        Tensor(table.format("token_type"), ("types",), inputs=1),
        *norm(f"{root}.embeddings.LayerNorm", "embedding_norm"),
        *projections((f"{layer}.{name}" for name in attention), "stack.layers.attention"),
        *norm(f"{layer}.{norms[0]}", "stack.layers.attention_norm"),
        *linear(f"{layer}.{mlp[0]}", "stack.layers.mlp.up"),
        *linear(f"{layer}.{mlp[1]}", "stack.layers.mlp.down"),
        *norm(f"{layer}.{norms[1]}", "stack.layers.mlp_norm"),
    )


def obstacles(config: EncoderConfig, heads: Mapping[Head, str], **fixed: Any) -> list[str]:
    """Why an architecture cannot express `config`: the usual limits, changed by `fixed`, and the heads there are."""
    usual = {
        "norm_position": "after",
        "activation": ANY,
        "logit_scale": ANY,
        "embedding_dim": None,
        "embedding_norm": True,
        "share_layers": False,
        "position_offset": 0,
        "pooler_activation": "tanh",
    }
    found = fixed_fields(config, **usual | fixed) + divided_heads(config)
    if "num_types" not in fixed and config.num_types < 1:
        found.append("num_types of at least 1")
    if config.head not in heads:
        found.append(f"head={' or '.join(heads)}")
    return found


def stack_values(config: StackConfig) -> dict[str, Any]:
    """What a config.json says of a stack."""
    return {
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
    }


def read_stack(
    keys: Keys,
    names: Mapping[str, str] = _AS_THEY_ARE,
    *,
    dropout: float = 0.1,
    activations: tuple[str, ...] = tuple(ACTIVATIONS),
) -> dict[str, Any]:
    """The fields of a stack that the keys of `stack_values` describe; `names` of keys that differ."""

    def named(key: str) -> str:
        return names.get(key, key)

    model_dim, num_heads = keys.multiple(named("hidden_size"), named("num_attention_heads"))
    return {
        "model_dim": model_dim,
        "num_layers": keys.integer(named("num_hidden_layers")),
        "num_heads": num_heads,
        "mlp_dim": keys.integer(named("intermediate_size")),
        "activation": ACTIVATIONS[keys.choice(named("hidden_act"), activations[0], activations)],
        "dropout": keys.number(named("hidden_dropout_prob"), dropout),
        "attention_dropout": keys.number(named("attention_probs_dropout_prob"), dropout),
        "init_std": keys.number("initializer_range", 0.02),
    }


def to_values(config: EncoderConfig, names: Mapping[str, str] = _AS_THEY_ARE) -> dict[str, Any]:
    """What a config.json says of this model, but for what only some families have; `names` of keys that differ."""
    values = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length + config.position_offset,
        **stack_values(config),
    }
    if config.head in CLASSIFYING:
        values |= labels.to_values(config.num_classes, config.classes)
    return {names.get(key, key): value for key, value in values.items()}


def read(
    keys: Keys,
    heads: Mapping[Head, str],
    names: Mapping[str, str] = _AS_THEY_ARE,
    *,
    dropout: float = 0.1,
    activations: tuple[str, ...] = tuple(ACTIVATIONS),
    **fields: Any,
) -> EncoderConfig:
    """The model that the keys of `to_values` describe, with the `fields` that only this family has.

    Raises ValueError, in one sentence, for what is not computed here.
    """
    [architecture] = keys.choice("architectures", REQUIRED, tuple([name] for name in heads.values()))
    head = next(head for head, name in heads.items() if name == architecture)
    shared: dict[str, Any] = {
        "head": head,
        "vocab_size": keys.integer("vocab_size"),
        "max_length": keys.integer("max_position_embeddings"),
        **read_stack(keys, names, dropout=dropout, activations=activations),
        **(labels.read(keys) if head in CLASSIFYING else {}),
    }
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        keys.choice(key, False, (False,))
    keys.choice("pruned_heads", {}, ({},))
    keys.choice("position_embedding_type", "absolute", ("absolute",))
    keys.choice("tie_word_embeddings", True, (True,))
    return EncoderConfig(**shared | fields)
