"""The explicit table of structures: a new one is a file beside this one, and lines here and in model/cost.py."""

from collections.abc import Callable, Mapping
from typing import Any

from model.decoder import Decoder, DecoderConfig
from model.distillation import Distillation, DistillationConfig
from model.encoder import Encoder, EncoderConfig
from model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from model.encoder_pair import EncoderPairConfig
from model.generator_discriminator import GeneratorDiscriminator, GeneratorDiscriminatorConfig
from model.image_decoder import ImageDecoder, ImageDecoderConfig
from model.recurrent import Recurrent, RecurrentConfig
from model.vision import Vision, VisionConfig

ModelConfig = (
    DecoderConfig
    | EncoderConfig
    | EncoderDecoderConfig
    | RecurrentConfig
    | VisionConfig
    | ImageDecoderConfig
    | GeneratorDiscriminatorConfig
    | DistillationConfig
)

STRUCTURES: dict[type, Callable[..., Any]] = {
    DecoderConfig: Decoder,
    EncoderConfig: Encoder,
    EncoderDecoderConfig: EncoderDecoder,
    RecurrentConfig: Recurrent,
    VisionConfig: Vision,
    ImageDecoderConfig: ImageDecoder,
    GeneratorDiscriminatorConfig: GeneratorDiscriminator,
    DistillationConfig: Distillation,
}


def kept_config(config: Any) -> Any:
    """The model that is exported and started from: all of it, unless it is one of two that were trained together."""
    return config.kept if isinstance(config, EncoderPairConfig) else config


def kept_part(config: Any, params: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The model that is exported and started from, and its weights by the names that they have in it alone."""
    if not isinstance(config, EncoderPairConfig):
        return config, params
    prefix = f"{config.KEPT}."
    return config.kept, {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
