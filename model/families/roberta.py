"""RoBERTa (Liu et al. 2019): BERT without sentence pairs, whose positions are counted from after the padding's."""

from typing import Any

from model.encoder import EncoderConfig, Head
from model.families.bert_like import body, read, to_values
from model.families.bert_like import obstacles as limits
from model.families.keys import INERT, Keys
from model.families.weights import Tensor, dense, norm

HEADS: dict[Head, str] = {
    "pooler": "RobertaModel",
    "masked_lm": "RobertaForMaskedLM",
    "sequence_classification": "RobertaForSequenceClassification",
    "token_classification": "RobertaForTokenClassification",
    "span": "RobertaForQuestionAnswering",
}
ARCHITECTURES: tuple[str, ...] = tuple(HEADS.values())
MODEL_TYPE: str = "roberta"


def _preset(num_layers: int, model_dim: int, num_heads: int) -> EncoderConfig:
    return EncoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=50_265,
        max_length=512,
        position_offset=2,
        num_types=1,
        norm_epsilon=1e-5,
        dropout=0.1,
        attention_dropout=0.1,
        pooler_dropout=True,
    )


PRESETS: dict[str, EncoderConfig] = {
    "roberta-base": _preset(12, 768, 12),
    "roberta-large": _preset(24, 1024, 16),
}

PREFIX: str = "roberta."
COPIES: dict[str, str] = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
# A buffer of old versions, and the pooler that the published models have without using it.
IGNORED: str = r"roberta\.embeddings\.position_ids|roberta\.pooler\..*"

_POOLERS: dict[Head, str] = {"sequence_classification": "classifier.dense"}
_CLASSIFIERS: dict[Head, str] = {"sequence_classification": "classifier.out_proj", "span": "qa_outputs"}


def weights(config: EncoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return (
        *body("roberta", "roberta.encoder.layer.{layer}"),
        *dense(_POOLERS.get(config.head, "roberta.pooler.dense"), "pooler"),
        *dense("lm_head.dense", "head_dense"),
        *norm("lm_head.layer_norm", "head_norm"),
        Tensor("lm_head.bias", ("vocab_bias",)),
        *dense(_CLASSIFIERS.get(config.head, "classifier"), "classifier"),
    )


def architecture(config: EncoderConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: EncoderConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return limits(config, HEADS, activation="gelu", position_offset=max(config.position_offset, 1))


def to_hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """What a config.json says of this model: positions are counted from after the padding token's number."""
    return {
        **to_values(config),
        "pad_token_id": config.position_offset - 1,
        "type_vocab_size": config.num_types,
        "layer_norm_eps": config.norm_epsilon,
        "classifier_dropout": config.classifier_dropout,
    }


def from_hugging_face_config(values: dict[str, Any]) -> EncoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    offset = keys.integer("pad_token_id", 1, at_least=0) + 1
    rows = keys.integer("max_position_embeddings")
    if rows <= offset:
        raise ValueError(
            f"config.json: max_position_embeddings={rows} must be more than pad_token_id + 1 = {offset}, "
            "where positions begin"
        )
    config = read(
        keys,
        HEADS,
        activations=("gelu",),  # that of the masked-LM head, whatever the layers have
        max_length=rows - offset,
        position_offset=offset,
        num_types=keys.integer("type_vocab_size", 2),
        norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        classifier_dropout=keys.number("classifier_dropout", None),
        pooler_dropout=True,
    )
    keys.finish(INERT)
    config.validate()
    return config
