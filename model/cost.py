"""What a model costs, from its configuration alone."""

from typing import Literal

from model.config import GATED
from model.decoder import DecoderConfig


def count_parameters(config: DecoderConfig) -> int:
    """Number of trainable parameters: tied tensors once, the padding of the vocabulary not at all."""
    D, H, G, K, U = config.model_dim, config.num_heads, config.kv_heads, config.head_size, config.value_head_size
    norm = 2 * D if config.norm == "layer" and config.norm_bias else D
    norms = norm if config.norm_position == "parallel" else 2 * norm
    biases = (H + G) * K + G * U + D if config.has_attention_bias else 0
    biases += config.mlp_size + D if config.use_bias else 0
    positions = config.max_length * D if config.positions == "learned" else 0
    tables = config.vocab_size * D * (1 if config.tie_embeddings else 2)
    return tables + positions + config.num_layers * (_layer_matrices(config) + biases + norms) + norm


def train_flops_per_token(
    config: DecoderConfig, length: int, convention: Literal["computed", "palm"] = "computed"
) -> int:
    """Operations of the matrix products, forward and backward, for each token in rows of `length`, none recomputed.

    computed: 6 N + 6 layers heads head_size length. N counts what is multiplied: every layer's matrices and the
    projection onto the vocabulary, tied or not; neither a table that is only looked up, nor positions, norms, biases
    or padding. Causal attention counts as computed, for half of the square.

    palm (Chowdhery et al. 2022, appendix B): 6 N + 12 layers heads head_size length, with N all parameters.
    """
    attention = 3 * config.num_layers * config.num_heads * (config.head_size + config.value_head_size) * length
    if convention == "palm":
        return 6 * count_parameters(config) + 2 * attention
    return 6 * (config.vocab_size * config.model_dim + config.num_layers * _layer_matrices(config)) + attention


def _layer_matrices(config: DecoderConfig) -> int:
    D, H, G, K, U = config.model_dim, config.num_heads, config.kv_heads, config.head_size, config.value_head_size
    return D * (H + G) * K + D * G * U + H * U * D + (3 if config.activation in GATED else 2) * D * config.mlp_size
