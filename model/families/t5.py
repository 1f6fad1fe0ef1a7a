"""T5 (Raffel et al. 2020), and its version 1.1 with gated feed-forward layers (Shazeer 2020) and an untied projection.

Version 1.0 ties that projection to the embedding and scales what it is given by 1 / sqrt(model_dim). Its parameters are
counted here with every one of them stored: transformers' own count of 1.1 leaves out the projection, which it ties.
"""

from typing import Any

import numpy as np

from model.encoder_decoder import EncoderDecoderConfig
from model.families.keys import INERT, Keys
from model.families.obstacles import ANY, fixed_fields
from model.families.weights import Tensor, matrix

ARCHITECTURES: tuple[str, ...] = ("T5ForConditionalGeneration",)
MODEL_TYPE: str = "t5"
_ACTIVATIONS: dict[str, Any] = {"relu": "relu", "gated-gelu": "geglu"}


def _config(
    num_layers: int, model_dim: int, mlp_dim: int, num_heads: int, *, tie_embeddings: bool, **fields: Any
) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        norm="rms",
        positions="relative",
        use_bias=False,
        attention_scale=1.0,
        init="fan_in",
        init_std=model_dim**-0.5,
        tie_embeddings=tie_embeddings,
        logit_scale=model_dim**-0.5 if tie_embeddings else 1.0,
        **fields,
    )


def _preset(
    num_layers: int,
    model_dim: int,
    mlp_dim: int,
    num_heads: int,
    head_dim: int = 64,
    *,
    version: str = "1.0",
) -> EncoderDecoderConfig:
    return _config(
        num_layers,
        model_dim,
        mlp_dim,
        num_heads,
        head_dim=head_dim,
        vocab_size=32_128,
        max_length=512,
        norm_epsilon=1e-6,
        activation="relu" if version == "1.0" else "geglu",
        dropout=0.1,
        attention_dropout=0.1,
        decoder_start_id=0,  # its padding
        tie_embeddings=version == "1.0",
    )


PRESETS: dict[str, EncoderDecoderConfig] = {
    "t5-small": _preset(6, 512, 2048, 8),
    "t5-base": _preset(12, 768, 3072, 12),
    "t5-large": _preset(24, 1024, 4096, 16),
    "t5-3b": _preset(24, 1024, 16_384, 32, 128),
    "t5-11b": _preset(24, 1024, 65_536, 128, 128),
    "t5-v1.1-small": _preset(8, 512, 1024, 6, version="1.1"),
}


def _attention(theirs: str, ours: str) -> tuple[Tensor, ...]:
    return (
        matrix(f"{theirs}.q", f"{ours}.query"),
        matrix(f"{theirs}.k", f"{ours}.key"),
        matrix(f"{theirs}.v", f"{ours}.value"),
        matrix(f"{theirs}.o", f"{ours}.out", inputs=2),
    )


def _side(side: str) -> tuple[Tensor, ...]:
    theirs, ours = f"{side}.block.{{layer}}.layer", f"{side}.stack.layers"
    mlp = f"{theirs}.{1 if side == 'encoder' else 2}"
    cross = (
        *_attention(f"{theirs}.1.EncDecAttention", f"{ours}.cross_attention"),
        Tensor(f"{theirs}.1.layer_norm.weight", (f"{ours}.cross_norm.scale",)),
    )
    return (
        *_attention(f"{theirs}.0.SelfAttention", f"{ours}.attention"),
        Tensor(
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (f"{side}.stack.relative.table",),
            inputs=1,
        ),
        Tensor(f"{theirs}.0.layer_norm.weight", (f"{ours}.attention_norm.scale",)),
        *(cross if side == "decoder" else ()),
        matrix(f"{mlp}.DenseReluDense.wi", f"{ours}.mlp.up"),
        matrix(f"{mlp}.DenseReluDense.wi_0", f"{ours}.mlp.gate_up", gate=0),
        matrix(f"{mlp}.DenseReluDense.wi_1", f"{ours}.mlp.gate_up", gate=1),
        matrix(f"{mlp}.DenseReluDense.wo", f"{ours}.mlp.down"),
        Tensor(f"{mlp}.layer_norm.weight", (f"{ours}.mlp_norm.scale",)),
        Tensor(f"{side}.final_layer_norm.weight", (f"{side}.norm.scale",)),
    )


_WEIGHTS: tuple[Tensor, ...] = (
    Tensor("shared.weight", ("embedding.table",), inputs=1),
    *_side("encoder"),
    *_side("decoder"),
    Tensor("lm_head.weight", ("head.table",), inputs=1),
)
PREFIX: str = ""
COPIES: dict[str, str] = {
    "lm_head.weight": "shared.weight",
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
}
# Stored by old versions, and used by none.
IGNORED: str = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"


def weights(config: EncoderDecoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return _WEIGHTS


def architecture(config: EncoderDecoderConfig) -> str:
    """The name of this model's architecture."""
    return ARCHITECTURES[0]


def constants(config: EncoderDecoderConfig) -> dict[str, np.ndarray]:
    """Tensors of their files that are no weights of this model, and what each must be."""
    return {}


def obstacles(config: EncoderDecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return fixed_fields(
        config,
        norm="rms",
        activation=config.activation if config.activation in _ACTIVATIONS.values() else "relu",
        positions="relative",
        use_bias=False,
        kv_heads=config.num_heads,
        score_scale=1.0,
        share_embeddings=True,
        scale_embeddings=False,
        embedding_norm=False,
        logit_scale=config.model_dim**-0.5 if config.tie_embeddings else 1.0,
        logit_bias=False,
        norm_bias=ANY,  # this norm has none
    )


def to_hugging_face_config(config: EncoderDecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model. Dropout of attention has no key, and is theirs as all other dropout is."""
    start = {} if config.decoder_start_id is None else {"decoder_start_token_id": config.decoder_start_id}
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "d_model": config.model_dim,
        "d_kv": config.head_size,
        "d_ff": config.mlp_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_embeddings,
        **start,
    }


def from_hugging_face_config(values: dict[str, Any]) -> EncoderDecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here.

    Version 5 of transformers writes of 1.1 that its projection is tied, whether it is or not; but only 1.0 scales.
    """
    keys = Keys(values)
    keys.choice("is_encoder_decoder", True, (True,))
    keys.choice("is_decoder", False, (False,))
    keys.choice("pruned_heads", {}, ({},))
    tied = keys.flag("tie_word_embeddings", True)
    config = _config(
        num_layers := keys.integer("num_layers"),
        keys.integer("d_model"),
        keys.integer("d_ff"),
        keys.integer("num_heads"),
        num_decoder_layers=keys.integer("num_decoder_layers", num_layers),
        head_dim=keys.integer("d_kv"),
        vocab_size=keys.integer("vocab_size"),
        max_length=keys.integer("n_positions", 512),
        norm_epsilon=keys.number("layer_norm_epsilon", 1e-6),
        activation=_ACTIVATIONS[keys.choice("feed_forward_proj", "relu", tuple(_ACTIVATIONS))],
        relative_buckets=keys.integer("relative_attention_num_buckets", 32),
        relative_distance=keys.integer("relative_attention_max_distance", 128),
        dropout=keys.number("dropout_rate", 0.1),
        attention_dropout=keys.number("dropout_rate", 0.1),
        tie_embeddings=keys.flag("scale_decoder_outputs", tied),
        decoder_start_id=keys.integer("decoder_start_token_id", None, at_least=0),
    )
    # The first two repeat feed_forward_proj; the others are of fresh weights, and of another head.
    keys.finish(INERT | {"dense_act_fn", "is_gated_act", "initializer_factor", "classifier_dropout"})
    config.validate()
    return config
