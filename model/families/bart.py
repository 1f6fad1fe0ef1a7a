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
_FIXED: dict[str, Any] = {"norm_position": "after", **bart_like.LEARNED}
_PRESET: dict[str, Any] = {"vocab_size": 50_265, "max_length": 1024, "attention_dropout": 0.1, "decoder_start_id": 2}

PRESETS: dict[str, EncoderDecoderConfig] = {
    "bart-base": bart_like.preset(6, 768, 12, **_PRESET, **_FIXED),
    "bart-large": bart_like.preset(12, 1024, 16, **_PRESET, **_FIXED),
}


def architecture(config: EncoderDecoderConfig) -> str:
    """The name of this model's architecture."""
    return ARCHITECTURES[0]


def obstacles(config: EncoderDecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return bart_like.obstacles(config, **_FIXED)


def from_hugging_face_config(values: dict[str, Any]) -> EncoderDecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    return bart_like.read(Keys(values), start_id=2, init="normal", **_FIXED)
