"""What BERT and its kin have in common in Hugging Face's folders: tensors, keys of config.json, and limits.

A family has one architecture for each head.
"""

from collections.abc import Mapping
from typing import Any

from model.encoder import CLASSIFYING, EncoderConfig, Head
from model.families.keys import REQUIRED, Keys
from model.families.obstacles import ANY, fixed_fields
from model.families.weights import Tensor

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_AS_THEY_ARE: Mapping[str, str] = {}


def linear(theirs: str, weight: str, bias: str, inputs: int = 1) -> tuple[Tensor, Tensor]:
    """A Linear of theirs, stored (out, in), as weight and bias of ours."""
    return Tensor(f"{theirs}.weight", (weight,), inputs, transposed=True), Tensor(f"{theirs}.bias", (bias,))


def dense(theirs: str, ours: str) -> tuple[Tensor, Tensor]:
    """A Linear of theirs as a Dense of ours."""
    return linear(theirs, f"{ours}.weight", f"{ours}.bias")


def norm(theirs: str, ours: str) -> tuple[Tensor, Tensor]:
    """A LayerNorm."""
    return Tensor(f"{theirs}.weight", (f"{ours}.scale",)), Tensor(f"{theirs}.bias", (f"{ours}.bias",))


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
    ours = "stack.layers.attention"
    return (
        Tensor(table.format("word"), ("embedding.table",), inputs=1),
        Tensor(table.format("position"), ("positions",), inputs=1),
        Tensor(table.format("token_type"), ("types",), inputs=1),
        *norm(f"{root}.embeddings.LayerNorm", "embedding_norm"),
        *linear(f"{layer}.{attention[0]}", f"{ours}.query", f"{ours}.query_bias"),
        *linear(f"{layer}.{attention[1]}", f"{ours}.key", f"{ours}.key_bias"),
        *linear(f"{layer}.{attention[2]}", f"{ours}.value", f"{ours}.value_bias"),
        *linear(f"{layer}.{attention[3]}", f"{ours}.out", f"{ours}.out_bias", inputs=2),
        *norm(f"{layer}.{norms[0]}", "stack.layers.attention_norm"),
        *linear(f"{layer}.{mlp[0]}", "stack.layers.mlp.up", "stack.layers.mlp.up_bias"),
        *linear(f"{layer}.{mlp[1]}", "stack.layers.mlp.down", "stack.layers.mlp.down_bias"),
        *norm(f"{layer}.{norms[1]}", "stack.layers.mlp_norm"),
    )


def obstacles(config: EncoderConfig, heads: Mapping[Head, str], **fixed: Any) -> list[str]:
    """Why an architecture cannot express `config`: the usual limits, changed by `fixed`, and the heads there are."""
    usual = {
        "kv_heads": config.num_heads,
        "norm_position": "after",
        "activation": ANY,
        "logit_scale": ANY,
        "embedding_dim": None,
        "embedding_norm": True,
        "share_layers": False,
        "position_offset": 0,
        "pooler_activation": "tanh",
    }
    found = fixed_fields(config, **usual | fixed)
    if config.head_size * config.num_heads != config.model_dim:
        found.append("head_dim=model_dim/num_heads")
    if "num_types" not in fixed and config.num_types < 1:
        found.append("num_types of at least 1")
    if config.head not in heads:
        found.append(f"head={' or '.join(heads)}")
    return found


def to_values(config: EncoderConfig, names: Mapping[str, str] = _AS_THEY_ARE) -> dict[str, Any]:
    """What a config.json says of this model, but for what only some families have; `names` of keys that differ."""
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length + config.position_offset,
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "hidden_act": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
    }
    if config.head in CLASSIFYING:
        labels = [f"LABEL_{i}" for i in range(config.num_classes)]
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    return {names.get(key, key): value for key, value in values.items()}


def read(
    keys: Keys,
    heads: Mapping[Head, str],
    names: Mapping[str, str] = _AS_THEY_ARE,
    *,
    dropout: float = 0.1,
    activations: tuple[str, ...] = tuple(_ACTIVATIONS),
    **fields: Any,
) -> EncoderConfig:
    """The model that the keys of `to_values` describe, with the `fields` that only this family has.

    Raises ValueError, in one sentence, for what is not computed here.
    """

    def named(key: str) -> str:
        return names.get(key, key)

    [architecture] = keys.choice("architectures", REQUIRED, tuple([name] for name in heads.values()))
    shared: dict[str, Any] = {
        "head": next(head for head, name in heads.items() if name == architecture),
        "model_dim": keys.integer(named("hidden_size")),
        "num_layers": keys.integer(named("num_hidden_layers")),
        "num_heads": keys.integer(named("num_attention_heads")),
        "mlp_dim": keys.integer(named("intermediate_size")),
        "vocab_size": keys.integer("vocab_size"),
        "max_length": keys.integer("max_position_embeddings"),
        "activation": _ACTIVATIONS[keys.choice(named("hidden_act"), activations[0], activations)],
        "dropout": keys.number(named("hidden_dropout_prob"), dropout),
        "attention_dropout": keys.number(named("attention_probs_dropout_prob"), dropout),
        "init_std": keys.number("initializer_range", 0.02),
    }
    model_dim, num_heads = shared["model_dim"], shared["num_heads"]
    if model_dim % num_heads:
        raise ValueError(
            f"config.json: {named('hidden_size')}={model_dim} must be a multiple of "
            f"{named('num_attention_heads')}={num_heads}"
        )
    if shared["head"] in CLASSIFYING:
        labels = keys.inside("id2label")
        shared["num_classes"] = keys.integer("num_labels", 2) if labels is None else len(labels)
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        keys.choice(key, False, (False,))
    keys.choice("pruned_heads", {}, ({},))
    keys.choice("position_embedding_type", "absolute", ("absolute",))
    keys.choice("tie_word_embeddings", True, (True,))
    return EncoderConfig(**shared | fields)
