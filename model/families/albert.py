"""ALBERT (Lan et al. 2019): one layer applied many times, and embeddings narrower than the model. Version 2's sizes."""

from typing import Any

from model.encoder import EncoderConfig, Head
from model.families.bert_like import body, read, to_values
from model.families.bert_like import obstacles as limits
from model.families.keys import INERT, Keys
from model.families.weights import Tensor, dense, norm

HEADS: dict[Head, str] = {
    "pooler": "AlbertModel",
    "masked_lm": "AlbertForMaskedLM",
    "pretraining": "AlbertForPreTraining",
    "sequence_classification": "AlbertForSequenceClassification",
    "token_classification": "AlbertForTokenClassification",
    "span": "AlbertForQuestionAnswering",
}
ARCHITECTURES: tuple[str, ...] = tuple(HEADS.values())
MODEL_TYPE: str = "albert"


def _preset(num_layers: int, model_dim: int, num_heads: int) -> EncoderConfig:
    return EncoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=30_000,
        max_length=512,
        embedding_dim=128,
        share_layers=True,
        activation="gelu_tanh",
        head="pretraining",
        classifier_dropout=0.1,
    )


PRESETS: dict[str, EncoderConfig] = {
    "albert-base": _preset(12, 768, 12),
    "albert-large": _preset(24, 1024, 16),
    "albert-xlarge": _preset(24, 2048, 16),
    "albert-xxlarge": _preset(12, 4096, 64),
}

PREFIX: str = "albert."
COPIES: dict[str, str] = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
# A buffer of old versions, and what the published models have beside the head that their config.json names.
IGNORED: str = r"albert\.embeddings\.position_ids|albert\.pooler\..*|sop_classifier\..*"

_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
_CLASSIFIERS: dict[Head, str] = {"pretraining": "sop_classifier.classifier", "span": "qa_outputs"}


def weights(config: EncoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return (
        *body(
            "albert",
            _LAYER,
            attention=("attention.query", "attention.key", "attention.value", "attention.dense"),
            mlp=("ffn", "ffn_output"),
            norms=("attention.LayerNorm", "full_layer_layer_norm"),
        ),
        *dense("albert.encoder.embedding_hidden_mapping_in", "projection"),
        *dense("albert.pooler", "pooler"),
        *dense("predictions.dense", "head_dense"),
        *norm("predictions.LayerNorm", "head_norm"),
        Tensor("predictions.bias", ("vocab_bias",)),
        *dense(_CLASSIFIERS.get(config.head, "classifier"), "classifier"),
    )


def architecture(config: EncoderConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: EncoderConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    embedding_dim = config.embedding_size  # there is a projection even where both are as wide
    return limits(config, HEADS, share_layers=True, embedding_dim=embedding_dim)


def to_hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    rate = config.dropout if config.classifier_dropout is None else config.classifier_dropout
    return {
        **to_values(config),
        "embedding_size": config.embedding_size,
        "type_vocab_size": config.num_types,
        "layer_norm_eps": config.norm_epsilon,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "classifier_dropout_prob": rate,
    }


def from_hugging_face_config(values: dict[str, Any]) -> EncoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    config = read(
        keys,
        HEADS,
        dropout=0.0,
        embedding_dim=keys.integer("embedding_size", 128),
        share_layers=True,
        num_types=keys.integer("type_vocab_size", 2),
        norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        classifier_dropout=keys.number("classifier_dropout_prob", 0.1),
    )
    keys.choice("num_hidden_groups", 1, (1,))
    keys.choice("inner_group_num", 1, (1,))
    # The first release's own code had these.
    keys.finish(INERT | {"down_scale_factor", "gap_size", "layers_to_keep", "net_structure_type", "num_memory_blocks"})
    config.validate()
    return config
