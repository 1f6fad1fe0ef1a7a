"""ViT (Dosovitskiy et al. 2020), and its small sizes Ti and S (Touvron et al. 2020)."""

from typing import Any

from model.families import labels
from model.families.bert_like import ACTIVATIONS, read_stack, stack_values
from model.families.keys import INERT, REQUIRED, Keys
from model.families.obstacles import ANY, divided_heads, fixed_fields
from model.families.weights import Tensor, dense, linear, norm, projections
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

_LAYER = "vit.encoder.layer.{layer}"
_ATTENTION = (
    *(f"{_LAYER}.attention.attention.{name}" for name in ("query", "key", "value")),
    f"{_LAYER}.attention.output.dense",
)

_WEIGHTS = (
    Tensor("vit.embeddings.cls_token", ("class_token",), ones=2),
    Tensor("vit.embeddings.position_embeddings", ("positions",), inputs=1, ones=1),
    Tensor("vit.embeddings.patch_embeddings.projection.weight", ("patch",), inputs=3, transposed=True, kernel=True),
    Tensor("vit.embeddings.patch_embeddings.projection.bias", ("patch_bias",)),
    *norm(f"{_LAYER}.layernorm_before", "stack.layers.attention_norm"),
    *projections(_ATTENTION, "stack.layers.attention"),
    *norm(f"{_LAYER}.layernorm_after", "stack.layers.mlp_norm"),
    *linear(f"{_LAYER}.intermediate.dense", "stack.layers.mlp.up"),
    *linear(f"{_LAYER}.output.dense", "stack.layers.mlp.down"),
    *norm("vit.layernorm", "norm"),
    *dense("vit.pooler.dense", "pooler"),
    *dense("classifier", "classifier"),
)
PREFIX: str = "vit."  # absent from files that were saved from ViTModel
COPIES: dict[str, str] = {}
IGNORED: str = r"vit\.pooler\..*"  # which a classifier does not use


def weights(config: VisionConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return _WEIGHTS


def architecture(config: VisionConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: VisionConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    found = fixed_fields(config, activation=ANY, logit_scale=ANY) + divided_heads(config)
    if config.activation not in ACTIVATIONS.values():
        found.append(f"activation={' or '.join(dict.fromkeys(ACTIVATIONS.values()))}")
    if config.head not in HEADS:
        found.append(f"head={' or '.join(HEADS)}")
    return found


def to_hugging_face_config(config: VisionConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    named = labels.to_values(config.num_classes, config.classes) if config.head == "classification" else {}
    return {
        **stack_values(config),
        "layer_norm_eps": config.norm_epsilon,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "qkv_bias": True,
        **named,
    }


def from_hugging_face_config(values: dict[str, Any]) -> VisionConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    stack = read_stack(keys, dropout=0.0)
    named = keys.choice("architectures", REQUIRED, tuple([name] for name in ARCHITECTURES))
    head: Head = next(head for head, name in HEADS.items() if [name] == named)
    keys.choice("qkv_bias", True, (True,))
    classes: dict[str, Any] = {}
    if head == "classification":
        classes = labels.read(keys)
    else:
        keys.choice("pooler_act", "tanh", ("tanh",))
        keys.choice("pooler_output_size", stack["model_dim"], (stack["model_dim"],))
    config = VisionConfig(
        image_size=keys.integer("image_size", 224),
        patch_size=keys.integer("patch_size", 16),
        channels=keys.integer("num_channels", 3),
        norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        head=head,
        **stack,
        **classes,
    )
    # The stride is that of a decoder of masked images.
    keys.finish(INERT | {"encoder_stride", "pooler_act", "pooler_output_size"})
    config.validate()
    return config
