"""Megatron-BERT (Shoeybi et al. 2019): BERT with norms before its sublayers; and GatorTron (Yang et al. 2022) of it.

GatorTron's vocabulary of clinical text is published as about 50,000 tokens: 50,176 is an assumption. Its sizes are
printed as other widths and heads too, which give neither the published numbers of parameters nor whole heads.
"""

from typing import Any

from model.encoder import EncoderConfig, Head
from model.families import bert
from model.families.bert_like import body, read, to_values
from model.families.bert_like import obstacles as limits
from model.families.keys import INERT, Keys
from model.families.weights import Tensor, norm

HEADS: dict[Head, str] = {head: f"Megatron{name}" for head, name in bert.HEADS.items()}
ARCHITECTURES: tuple[str, ...] = tuple(HEADS.values())
MODEL_TYPE: str = "megatron-bert"
PREFIX, COPIES, IGNORED = bert.PREFIX, bert.COPIES, bert.IGNORED


def _preset(num_layers: int, model_dim: int, num_heads: int, vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=vocab_size,
        max_length=512,
        norm_position="before",
        embedding_norm=False,
        head="pretraining",
        dropout=0.1,
        attention_dropout=0.1,
    )


PRESETS: dict[str, EncoderConfig] = {
    "megatron-bert-345m": _preset(24, 1024, 16, 29_056),
    "gatortron-base": _preset(24, 1024, 16, 50_176),
    "gatortron-medium": _preset(48, 2560, 40, 50_176),
    "gatortron-large": _preset(56, 3584, 56, 50_176),
}


def weights(config: EncoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return (
        *body("bert", "bert.encoder.layer.{layer}", norms=("attention.ln", "ln")),
        *norm("bert.encoder.ln", "norm"),
        *bert.heads(config),
    )


def architecture(config: EncoderConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: EncoderConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return limits(config, HEADS, norm_position="before", embedding_norm=False)


def to_hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """What a config.json says of this model, except for a classifier's own dropout, which has no key."""
    return {**to_values(config), "type_vocab_size": config.num_types, "layer_norm_eps": config.norm_epsilon}


def from_hugging_face_config(values: dict[str, Any]) -> EncoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    config = read(
        keys,
        HEADS,
        num_types=keys.integer("type_vocab_size", 2),
        norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        norm_position="before",
        embedding_norm=False,
    )
    keys.finish(INERT)
    config.validate()
    return config
