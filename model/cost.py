"""What a model costs, from its configuration alone."""

from collections.abc import Callable
from typing import Any, Literal

from model import encoder
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.stack import layer_matrices, layer_parameters, norm_parameters


def count_parameters(config: Any) -> int:
    """Number of trainable parameters: tied tensors once, the padding of the vocabulary not at all."""
    return _PARAMETERS[type(config)](config)


def train_flops_per_token(
    config: Any, length: int, convention: Literal["computed", "palm"] = "computed", predicted: float = 1.0
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
    attention = square // 2 if isinstance(config, DecoderConfig) else square
    return 6 * _MULTIPLIED[type(config)](config, predicted) + attention


def _decoder_parameters(config: DecoderConfig) -> int:
    D = config.model_dim
    positions = config.max_length * D if config.positions == "learned" else 0
    tables = config.vocab_size * D * (1 if config.tie_embeddings else 2)
    return tables + positions + config.num_layers * layer_parameters(config) + norm_parameters(config, D)


def _decoder_multiplied(config: DecoderConfig, predicted: float) -> int:
    return round(predicted * config.vocab_size * config.model_dim) + config.num_layers * layer_matrices(config)


_PARAMETERS: dict[type, Callable[[Any], int]] = {
    DecoderConfig: _decoder_parameters,
    EncoderConfig: encoder.count_parameters,
}
_MULTIPLIED: dict[type, Callable[[Any, float], int]] = {
    DecoderConfig: _decoder_multiplied,
    EncoderConfig: encoder.matrix_parameters,
}
