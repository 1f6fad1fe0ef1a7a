"""The Transformer (Vaswani et al. 2017), whose Hugging Face form is Marian's (Junczys-Dowmunt et al. 2018).

Attention has no biases in the paper's model, as in its authors' code, and has them in Marian. So that both fit into
Marian's files, two keys of our own in config.json, `attention_bias` and `final_logits_bias`, say which biases are zero
and no weights of ours; without the keys, as in the files of others, all are weights.

Dimensions of positions are ordered as in Marian and the authors' code: sines, then cosines. The paper interleaves them.
"""

from typing import Any

import numpy as np

from model.encoder_decoder import EncoderDecoderConfig
from model.families import bart_like
from model.families.keys import Keys
from model.families.obstacles import ANY
from model.positions import sinusoids

ARCHITECTURES: tuple[str, ...] = ("MarianMTModel",)
MODEL_TYPE: str = "marian"
PREFIX, COPIES, IGNORED, weights = bart_like.PREFIX, bart_like.COPIES, bart_like.IGNORED, bart_like.weights
_FIXED: dict[str, Any] = {
    "norm_position": "after",
    "embedding_norm": False,
    "positions": "sinusoidal",
    "position_offset": 0,
}


def _preset(
    num_layers: int, model_dim: int, mlp_dim: int, num_heads: int, dropout: float, vocab_size: int = 37_000
) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        vocab_size=vocab_size,
        max_length=512,
        activation="relu",
        attention_bias=False,
        scale_embeddings=True,
        dropout=dropout,
        init="fan_in",
        **_FIXED,
    )


PRESETS: dict[str, EncoderDecoderConfig] = {
    "transformer-base": _preset(6, 512, 2048, 8, dropout=0.1),
    "transformer-big": _preset(6, 1024, 4096, 16, dropout=0.3),
    "transformer-tiny": _preset(4, 128, 256, 4, dropout=0.3, vocab_size=10_000),  # for tens of thousands of pairs
}


def architecture(config: EncoderDecoderConfig) -> str:
    """The name of this model's architecture."""
    return ARCHITECTURES[0]


def constants(config: EncoderDecoderConfig) -> dict[str, np.ndarray]:
    """Tensors of their files that are no weights of this model, and what each must be."""
    table = sinusoids(config.max_length, config.model_dim)
    found = {f"model.{side}.embed_positions.weight": table for side in ("encoder", "decoder")}
    if not config.has_attention_bias:
        attentions = [f"encoder.layers.{i}.self_attn" for i in range(config.num_layers)]
        kinds = ("self_attn", "encoder_attn")
        attentions += [f"decoder.layers.{i}.{kind}" for i in range(config.decoder_layers) for kind in kinds]
        zero = np.zeros(config.model_dim, np.float32)
        found |= {f"model.{attention}.{name}.bias": zero for attention in attentions for name in bart_like.PROJECTIONS}
    return found | bart_like.constants(config)


def obstacles(config: EncoderDecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return bart_like.obstacles(config, has_attention_bias=ANY, share_embeddings=ANY, **_FIXED)


def to_hugging_face_config(config: EncoderDecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    return bart_like.to_hugging_face_config(config) | {
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.share_embeddings,
        "static_position_embeddings": True,
        "attention_bias": config.has_attention_bias,
    }


def from_hugging_face_config(values: dict[str, Any]) -> EncoderDecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    source, target = keys.integer("vocab_size"), keys.integer("decoder_vocab_size", keys.integer("vocab_size"))
    if source != target:
        raise ValueError(f"config.json: vocab_size={source} and decoder_vocab_size={target} must be equal")
    return bart_like.read(
        keys,
        logit_bias=True,
        share_embeddings=keys.flag("share_encoder_decoder_embeddings", True),
        attention_bias=keys.flag("attention_bias", True),
        init="fan_in",
        **_FIXED,
    )
