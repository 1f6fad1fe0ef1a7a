"""mBART (Liu et al. 2020): BART with norms before. Also the form of MegaMolBART, which reads and writes SMILES.

MegaMolBART is published for NVIDIA's Megatron, without a norm of what enters, and with a projection of its own onto the
vocabulary. Its published sizes, which contradict each other, are given here in the form that transformers loads, and
claim none of its results.
"""

from typing import Any

from model.encoder_decoder import EncoderDecoderConfig
from model.families import bart_like
from model.families.keys import Keys

ARCHITECTURES: tuple[str, ...] = ("MBartForConditionalGeneration",)
MODEL_TYPE: str = "mbart"
PREFIX, COPIES, IGNORED = bart_like.PREFIX, bart_like.COPIES, bart_like.IGNORED
weights, constants = bart_like.weights, bart_like.constants
to_hugging_face_config = bart_like.to_hugging_face_config
_FIXED: dict[str, Any] = {
    "norm_position": "before",
    "embedding_norm": True,
    "positions": "learned",
    "position_offset": 2,
}


def _molecules(num_layers: int, model_dim: int, num_heads: int) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=640,
        max_length=512,
        activation="gelu",
        dropout=0.1,
        init="normal",
        **_FIXED,
    )


PRESETS: dict[str, EncoderDecoderConfig] = {
    "megamolbart-style-xsmall": _molecules(4, 256, 8),
    "megamolbart-style-small": _molecules(6, 512, 8),
    "megamolbart-style-large": _molecules(8, 1024, 16),
    "megamolbart-style-card": _molecules(8, 256, 4),  # as its model card prints
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
    keys.choice("normalize_before", True, (True,))
    keys.choice("add_final_layer_norm", True, (True,))
    keys.choice("normalize_embedding", True, (True,))
    keys.choice("static_position_embeddings", False, (False,))
    return bart_like.config_of_kin(keys, logit_bias=False, init="normal", **_FIXED)
