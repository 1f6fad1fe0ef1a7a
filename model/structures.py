"""The explicit table of structures: a new one is a file beside this one and a line here."""

from collections.abc import Callable
from typing import Any

from model.decoder import Decoder, DecoderConfig
from model.encoder import Encoder, EncoderConfig

ModelConfig = DecoderConfig | EncoderConfig

STRUCTURES: dict[type, Callable[..., Any]] = {DecoderConfig: Decoder, EncoderConfig: Encoder}
