"""DistilBERT (Sanh et al. 2019): half of BERT's layers, learned from all of them; no types and no pooler.

Its classifier's hidden layer is a ReLU, and its norms' epsilon is fixed.
"""

from typing import Any

from model.encoder import EncoderConfig, Head
from model.families.bert_like import body, read, to_values
from model.families.bert_like import obstacles as limits
from model.families.keys import INERT, Keys
from model.families.weights import Tensor, dense, norm

HEADS: dict[Head, str] = {
    "none": "DistilBertModel",
    "masked_lm": "DistilBertForMaskedLM",
    "sequence_classification": "DistilBertForSequenceClassification",
    "token_classification": "DistilBertForTokenClassification",
    "span": "DistilBertForQuestionAnswering",
}
ARCHITECTURES: tuple[str, ...] = tuple(HEADS.values())
MODEL_TYPE: str = "distilbert"

PRESETS: dict[str, EncoderConfig] = {
    "distilbert-base-uncased": EncoderConfig(
        num_layers=6,
        model_dim=768,
        num_heads=12,
        vocab_size=30_522,
        max_length=512,
        num_types=0,
        pooler_activation="relu",
        dropout=0.1,
        attention_dropout=0.1,
        classifier_dropout=0.2,
    )
}

PREFIX: str = "distilbert."
COPIES: dict[str, str] = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}
IGNORED: str = r"distilbert\.embeddings\.position_ids"  # a buffer of old versions

_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
_CLASSIFIERS: dict[Head, str] = {"span": "qa_outputs"}


def weights(config: EncoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return (
        *body(
            "distilbert",
            "distilbert.transformer.layer.{layer}",
            attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
            mlp=("ffn.lin1", "ffn.lin2"),
            norms=("sa_layer_norm", "output_layer_norm"),
        ),
        *dense("pre_classifier", "pooler"),
        *dense("vocab_transform", "head_dense"),
        *norm("vocab_layer_norm", "head_norm"),
        Tensor("vocab_projector.bias", ("vocab_bias",)),
        *dense(_CLASSIFIERS.get(config.head, "classifier"), "classifier"),
    )


def architecture(config: EncoderConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: EncoderConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return limits(config, HEADS, num_types=0, norm_epsilon=1e-12, pooler_activation="relu")


def to_hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """What a config.json says of this model, except for a token classifier's own dropout, which has no key."""
    rate = config.dropout if config.classifier_dropout is None else config.classifier_dropout
    return {**to_values(config, _NAMES), "seq_classif_dropout": rate}


def from_hugging_face_config(values: dict[str, Any]) -> EncoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    config = read(
        keys,
        HEADS,
        _NAMES,
        num_types=0,
        pooler_activation="relu",
        classifier_dropout=keys.number("seq_classif_dropout", 0.2),
    )
    keys.choice("sinusoidal_pos_embds", False, (False,))
    keys.choice("tie_weights_", True, (True,))
    keys.finish(INERT | {"qa_dropout"})
    config.validate()
    return config
