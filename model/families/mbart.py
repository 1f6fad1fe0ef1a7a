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
_FIXED: dict[str, Any] = {"norm_position": "before", **bart_like.LEARNED}
_MOLECULES: dict[str, Any] = {"vocab_size": 640, "max_length": 512}

PRESETS: dict[str, EncoderDecoderConfig] = {
    "megamolbart-style-xsmall": bart_like.preset(4, 256, 8, **_MOLECULES, **_FIXED),
    "megamolbart-style-small": bart_like.preset(6, 512, 8, **_MOLECULES, **_FIXED),
    "megamolbart-style-large": bart_like.preset(8, 1024, 16, **_MOLECULES, **_FIXED),
    "megamolbart-style-card": bart_like.preset(8, 256, 4, **_MOLECULES, **_FIXED),  # as its model card prints
}


def architecture(config: EncoderDecoderConfig) -> str:
    """The name of this model's architecture."""
    return ARCHITECTURES[0]


def obstacles(config: EncoderDecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return bart_like.obstacles(config, **_FIXED)


def from_hugging_face_config(values: dict[str, Any]) -> EncoderDecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    return bart_like.read(Keys(values), init="normal", **_FIXED)
