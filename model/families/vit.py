"""ViT (Dosovitskiy et al. 2020), and its small sizes Ti and S (Touvron et al. 2020)."""

from typing import Any

from model.families.bert_like import dense, linear, norm
from model.families.keys import INERT, REQUIRED, Keys
from model.families.obstacles import ANY, fixed_fields
from model.families.weights import Tensor
from model.vision import Head, VisionConfig

HEADS: dict[Head, str] = {"classification": "ViTForImageClassification", "pooler": "ViTModel"}
ARCHITECTURES: tuple[str, ...] = tuple(HEADS.values())
MODEL_TYPE: str = "vit"


def _preset(num_layers: int, model_dim: int, num_heads: int, patch_size: int, image_size: int = 224) -> VisionConfig:
    return VisionConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        patch_size=patch_size,
        image_size=image_size,
    )


PRESETS: dict[str, VisionConfig] = {
    "vit-ti16": _preset(12, 192, 3, 16),
    "vit-s16": _preset(12, 384, 6, 16),
    "vit-b16": _preset(12, 768, 12, 16),
    "vit-b32": _preset(12, 768, 12, 32),
    "vit-l16": _preset(24, 1024, 16, 16),
    "vit-h14": _preset(32, 1280, 16, 14),
    "vit-b16-384": _preset(12, 768, 12, 16, 384),
    "vit-l32-384": _preset(24, 1024, 16, 32, 384),
}

_LAYER, _ATTENTION = "vit.encoder.layer.{layer}", "stack.layers.attention"

_WEIGHTS = (
    Tensor("vit.embeddings.cls_token", ("class_token",), ones=2),
    Tensor("vit.embeddings.position_embeddings", ("positions",), inputs=1, ones=1),
    Tensor("vit.embeddings.patch_embeddings.projection.weight", ("patch",), inputs=3, transposed=True, kernel=True),
    Tensor("vit.embeddings.patch_embeddings.projection.bias", ("patch_bias",)),
    *norm(f"{_LAYER}.layernorm_before", "stack.layers.attention_norm"),
    *linear(f"{_LAYER}.attention.attention.query", f"{_ATTENTION}.query", f"{_ATTENTION}.query_bias"),
    *linear(f"{_LAYER}.attention.attention.key", f"{_ATTENTION}.key", f"{_ATTENTION}.key_bias"),
    *linear(f"{_LAYER}.attention.attention.value", f"{_ATTENTION}.value", f"{_ATTENTION}.value_bias"),
    *linear(f"{_LAYER}.attention.output.dense", f"{_ATTENTION}.out", f"{_ATTENTION}.out_bias", inputs=2),
    *norm(f"{_LAYER}.layernorm_after", "stack.layers.mlp_norm"),
    *linear(f"{_LAYER}.intermediate.dense", "stack.layers.mlp.up", "stack.layers.mlp.up_bias"),
    *linear(f"{_LAYER}.output.dense", "stack.layers.mlp.down", "stack.layers.mlp.down_bias"),
    *norm("vit.layernorm", "norm"),
    *dense("vit.pooler.dense", "pooler"),
    *dense("classifier", "classifier"),
)
PREFIX: str = "vit."  # absent from files that were saved from ViTModel
COPIES: dict[str, str] = {}
IGNORED: str = r"vit\.pooler\..*"  # which a classifier does not use

_ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def weights(config: VisionConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return _WEIGHTS


def architecture(config: VisionConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: VisionConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    found = fixed_fields(config, activation=ANY, logit_scale=ANY)
    if config.activation not in _ACTIVATIONS.values():
        found.append(f"activation={' or '.join(dict.fromkeys(_ACTIVATIONS.values()))}")
    if config.kv_heads != config.num_heads:
        found.append(f"num_kv_heads={config.num_heads}")
    if config.head_size * config.num_heads != config.model_dim:
        found.append("head_dim=model_dim/num_heads")
    if config.head not in HEADS:
        found.append(f"head={' or '.join(HEADS)}")
    return found


def to_hugging_face_config(config: VisionConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    values: dict[str, Any] = {
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "hidden_act": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        "layer_norm_eps": config.norm_epsilon,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "qkv_bias": True,
    }
    if config.head == "classification":
        labels = [f"LABEL_{i}" for i in range(config.num_classes)]
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    return values


def from_hugging_face_config(values: dict[str, Any]) -> VisionConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    model_dim, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if model_dim % num_heads:
        raise ValueError(f"config.json: hidden_size={model_dim} must be a multiple of num_attention_heads={num_heads}")
    named = keys.choice("architectures", REQUIRED, tuple([name] for name in ARCHITECTURES))
    head: Head = next(head for head, name in HEADS.items() if [name] == named)
    keys.choice("qkv_bias", True, (True,))
    fields: dict[str, Any] = {}
    if head == "classification":
        labels = keys.inside("id2label")
        fields["num_classes"] = keys.integer("num_labels", 2) if labels is None else len(labels)
    else:
        keys.choice("pooler_act", "tanh", ("tanh",))
        keys.choice("pooler_output_size", model_dim, (model_dim,))
    config = VisionConfig(
        num_layers=keys.integer("num_hidden_layers"),
        model_dim=model_dim,
        num_heads=num_heads,
        mlp_dim=keys.integer("intermediate_size"),
        image_size=keys.integer("image_size", 224),
        patch_size=keys.integer("patch_size", 16),
        channels=keys.integer("num_channels", 3),
        norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        activation=_ACTIVATIONS[keys.choice("hidden_act", "gelu", tuple(_ACTIVATIONS))],
        dropout=keys.number("hidden_dropout_prob", 0.0),
        attention_dropout=keys.number("attention_probs_dropout_prob", 0.0),
        init_std=keys.number("initializer_range", 0.02),
        head=head,
        **fields,
    )
    # The stride is that of a decoder of masked images.
    keys.finish(INERT | {"encoder_stride", "pooler_act", "pooler_output_size"})
    config.validate()
    return config
