"""What a model costs, from its configuration alone. Each structure counts in its own file."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from model import (
    decoder,
    distillation,
    encoder,
    encoder_decoder,
    generator_discriminator,
    image_decoder,
    recurrent,
    vision,
)
from model.decoder import DecoderConfig
from model.distillation import DistillationConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.generator_discriminator import GeneratorDiscriminatorConfig
from model.image_decoder import ImageDecoderConfig
from model.recurrent import RecurrentConfig
from model.vision import VisionConfig

Row = Mapping[str, Any]


def count_parameters(config: Any) -> int:
    """Number of trainable parameters: tied tensors once, the padding of the vocabulary not at all."""
    return _PARAMETERS[type(config)](config)


def train_flops_per_row(config: Any, row: Row) -> int:
    """Operations of the matrix products of one row, forward and backward, none recomputed: 6 a weight and token.

    Attention counts as computed: causal for half of the square, any other whole. `row` has the arrays of one row of a
    batch by name, without the batch axis, and only their shapes are read: those of its tokens and, where tokens are
    predicted, its targets, each of which costs a projection onto the vocabulary.
    """
    return _ROWS[type(config)](config, row)


def train_flops_per_token(
    config: DecoderConfig | EncoderConfig,
    length: int,
    convention: Literal["computed", "palm"] = "computed",
    predicted: float = 1.0,
) -> int:
    """Operations of the matrix products, forward and backward, for each token in rows of `length`, none recomputed.

    computed: 6 N + 6 layers heads head_size length. N counts what is multiplied: every layer's matrices and, at a
    share `predicted` of the places, the projection onto the vocabulary, tied or not; neither a table that is only
    looked up, nor positions, norms, biases or padding. Causal attention counts as computed, for half of the square,
    and that of encoders for all of it.

    palm (Chowdhery et al. 2022, appendix B): 6 N + 12 layers heads head_size length, with N all parameters.
    """
    square = 6 * config.num_layers * config.num_heads * (config.head_size + config.value_head_size) * length
    if convention == "palm":
        return 6 * count_parameters(config) + square
    if isinstance(config, DecoderConfig):
        return 6 * decoder.matrix_parameters(config, predicted) + square // 2
    return 6 * encoder.matrix_parameters(config, predicted) + square


def _of_text(config: DecoderConfig | EncoderConfig, row: Row) -> int:
    length = row["tokens"].shape[0]
    predicted = row["targets"].shape[0] / length if "targets" in row else 0.0
    return train_flops_per_token(config, length, predicted=predicted) * length


def _of_pairs(count: Callable[[Any, int, int], int]) -> Callable[[Any, Row], int]:
    return lambda config, row: count(config, row["source_tokens"].shape[0], row["tokens"].shape[0])


def _of_distillation(config: DistillationConfig, row: Row) -> int:
    """The teacher's third is its forward pass: it learns nothing. What projects narrow students is left out."""
    return _of_text(config.student, row) + _of_text(config.teacher, row) // 3


_PARAMETERS: dict[type, Callable[[Any], int]] = {
    DecoderConfig: decoder.count_parameters,
    EncoderConfig: encoder.count_parameters,
    EncoderDecoderConfig: encoder_decoder.count_parameters,
    RecurrentConfig: recurrent.count_parameters,
    VisionConfig: vision.count_parameters,
    ImageDecoderConfig: image_decoder.count_parameters,
    GeneratorDiscriminatorConfig: generator_discriminator.count_parameters,
    DistillationConfig: distillation.count_parameters,
}
_ROWS: dict[type, Callable[[Any, Row], int]] = {
    DecoderConfig: _of_text,
    EncoderConfig: _of_text,
    EncoderDecoderConfig: _of_pairs(encoder_decoder.train_flops_per_row),
    RecurrentConfig: _of_pairs(recurrent.train_flops_per_row),
    VisionConfig: lambda config, row: vision.train_flops_per_row(config),
    ImageDecoderConfig: lambda config, row: image_decoder.train_flops_per_row(config, row["tokens"].shape[0]),
    GeneratorDiscriminatorConfig: lambda config, row: sum(_of_text(part, row) for part in config.encoders.values()),
    DistillationConfig: _of_distillation,
}
