"""BART (Lewis et al. 2019): norms after, learned positions that begin at row 2, and a norm of what enters."""

from typing import Any

from model.encoder_decoder import EncoderDecoderConfig
from model.families import bart_like
from model.families.keys import Keys

ARCHITECTURES: tuple[str, ...] = ("BartForConditionalGeneration", "BartModel")  # the latter is as published
MODEL_TYPE: str = "bart"
PREFIX, COPIES, IGNORED = bart_like.PREFIX, bart_like.COPIES, bart_like.IGNORED
weights, constants = bart_like.weights, bart_like.constants
to_hugging_face_config = bart_like.to_hugging_face_config
_FIXED: dict[str, Any] = {
    "norm_position": "after",
    "embedding_norm": True,
    "positions": "learned",
    "position_offset": 2,
}


def _preset(num_layers: int, model_dim: int, num_heads: int) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=50_265,
        max_length=1024,
        activation="gelu",
        dropout=0.1,
        attention_dropout=0.1,
        init="normal",
        **_FIXED,
    )


PRESETS: dict[str, EncoderDecoderConfig] = {
    "bart-base": _preset(6, 768, 12),
    "bart-large": _preset(12, 1024, 16),
}


def architecture(config: EncoderDecoderConfig) -> str:
    """The name of this model's architecture."""
    return ARCHITECTURES[0]


def obstacles(config: EncoderDecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return bart_like.obstacles_of_kin(config, **_FIXED)


def from_hugging_face_config(values: dict[str, Any]) -> EncoderDecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    keys.choice("normalize_before", False, (False,))
    keys.choice("add_final_layer_norm", False, (False,))
    keys.choice("normalize_embedding", True, (True,))
    keys.choice("static_position_embeddings", False, (False,))
    return bart_like.config_of_kin(keys, logit_bias=False, init="normal", **_FIXED)
