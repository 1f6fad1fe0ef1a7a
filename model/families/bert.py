"""BERT (Devlin et al. 2018), and models of its form: TinyBERT (Jiao et al. 2019) and FinBERT (Araci 2019, Yang 2020).

TinyBERT's layers are learned from BERT's; the two FinBERTs are BERT trained further on, or from, the language of
finance, and here classify sentiment.
"""

from typing import Any

from model.encoder import EncoderConfig, Head
from model.families.bert_like import body, read, to_values
from model.families.bert_like import obstacles as limits
from model.families.keys import INERT, Keys
from model.families.weights import Tensor, dense, norm

HEADS: dict[Head, str] = {
    "pooler": "BertModel",
    "masked_lm": "BertForMaskedLM",
    "pretraining": "BertForPreTraining",
    "sentence_pair": "BertForNextSentencePrediction",
    "sequence_classification": "BertForSequenceClassification",
    "token_classification": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
}
ARCHITECTURES: tuple[str, ...] = tuple(HEADS.values())
MODEL_TYPE: str = "bert"


def _preset(
    num_layers: int,
    model_dim: int,
    num_heads: int,
    vocab_size: int = 30_522,
    head: Head = "pretraining",
    **fields: Any,
) -> EncoderConfig:
    return EncoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=vocab_size,
        max_length=512,
        dropout=0.1,
        attention_dropout=0.1,
        head=head,
        **fields,
    )


PRESETS: dict[str, EncoderConfig] = {
    "bert-base-uncased": _preset(12, 768, 12),
    "bert-base-cased": _preset(12, 768, 12, 28_996),
    "bert-large-uncased": _preset(24, 1024, 16),
    "bert-large-cased": _preset(24, 1024, 16, 28_996),
    "tinybert-4": _preset(4, 312, 12, mlp_dim=1200, head="masked_lm"),
    "tinybert-6": _preset(6, 768, 12, head="masked_lm"),
    "finbert-prosus": _preset(12, 768, 12, head="sequence_classification", num_classes=3),
    "finbert-yiyanghkust": _preset(12, 768, 12, 30_873, head="sequence_classification", num_classes=3),
}

PREFIX: str = "bert."
COPIES: dict[str, str] = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# A buffer of old versions, and what the published models have beside the head that their config.json names.
IGNORED: str = r"bert\.embeddings\.position_ids|bert\.pooler\..*|cls\.seq_relationship\..*"
RENAMED: dict[str, str] = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
}  # as first published

_CLASSIFIERS: dict[Head, str] = {
    "pretraining": "cls.seq_relationship",
    "sentence_pair": "cls.seq_relationship",
    "span": "qa_outputs",
}


def weights(config: EncoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return (*body("bert", "bert.encoder.layer.{layer}"), *heads(config))


def heads(config: EncoderConfig) -> tuple[Tensor, ...]:
    """What stands behind the layers."""
    return (
        *dense("bert.pooler.dense", "pooler"),
        *dense("cls.predictions.transform.dense", "head_dense"),
        *norm("cls.predictions.transform.LayerNorm", "head_norm"),
        Tensor("cls.predictions.bias", ("vocab_bias",)),
        *dense(_CLASSIFIERS.get(config.head, "classifier"), "classifier"),
    )


def architecture(config: EncoderConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: EncoderConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return limits(config, HEADS)


def to_hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    return {
        **to_values(config),
        "type_vocab_size": config.num_types,
        "layer_norm_eps": config.norm_epsilon,
        "classifier_dropout": config.classifier_dropout,
    }


def from_hugging_face_config(values: dict[str, Any]) -> EncoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    config = read(
        keys,
        HEADS,
        num_types=keys.integer("type_vocab_size", 2),
        norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        classifier_dropout=keys.number("classifier_dropout", None),
    )
    # The first release described a pooler that only its own code read.
    keys.finish(INERT | {"directionality"} | {key for key in values if key.startswith("pooler_")})
    config.validate()
    return config
