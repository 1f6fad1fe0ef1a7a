"""ELECTRA (Clark et al. 2020): a generator fills masks, and a discriminator finds the tokens that it replaced.

Both are encoders. The generators are as published; the paper's own small one is a quarter as wide as its discriminator
(`electra-small-generator-quarter`), while the published one is not.
"""

from typing import Any

from model.encoder import EncoderConfig, Head
from model.families.bert_like import body, read, to_values
from model.families.bert_like import obstacles as limits
from model.families.keys import INERT, Keys
from model.families.weights import Tensor, dense, norm

HEADS: dict[Head, str] = {
    "none": "ElectraModel",
    "masked_lm": "ElectraForMaskedLM",
    "replaced_token": "ElectraForPreTraining",
    "sequence_classification": "ElectraForSequenceClassification",
    "token_classification": "ElectraForTokenClassification",
    "span": "ElectraForQuestionAnswering",
}
ARCHITECTURES: tuple[str, ...] = tuple(HEADS.values())
MODEL_TYPE: str = "electra"


def _preset(num_layers: int, model_dim: int, num_heads: int, embedding_dim: int, head: Head) -> EncoderConfig:
    return EncoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=30_522,
        max_length=512,
        embedding_dim=None if embedding_dim == model_dim else embedding_dim,
        head=head,
        pooler_activation="gelu",
        pooler_dropout=True,
        dropout=0.1,
        attention_dropout=0.1,
    )


PRESETS: dict[str, EncoderConfig] = {
    "electra-small-discriminator": _preset(12, 256, 4, 128, "replaced_token"),
    "electra-base-discriminator": _preset(12, 768, 12, 768, "replaced_token"),
    "electra-large-discriminator": _preset(24, 1024, 16, 1024, "replaced_token"),
    "electra-small-generator": _preset(12, 256, 4, 128, "masked_lm"),
    "electra-small-generator-quarter": _preset(12, 64, 1, 128, "masked_lm"),
    "electra-base-generator": _preset(12, 256, 4, 768, "masked_lm"),
    "electra-large-generator": _preset(24, 256, 4, 1024, "masked_lm"),
}

PREFIX: str = "electra."
COPIES: dict[str, str] = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"}
IGNORED: str = r"electra\.embeddings\.position_ids"  # a buffer of old versions

_CLASSIFIERS: dict[Head, str] = {
    "replaced_token": "discriminator_predictions.dense_prediction",
    "sequence_classification": "classifier.out_proj",
    "span": "qa_outputs",
}
_TRANSFORMS: dict[Head, str] = {"replaced_token": "discriminator_predictions.dense"}


def weights(config: EncoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return (
        *body("electra", "electra.encoder.layer.{layer}"),
        *dense("electra.embeddings_project", "projection"),
        *dense("classifier.dense", "pooler"),
        *dense(_TRANSFORMS.get(config.head, "generator_predictions.dense"), "head_dense"),
        *norm("generator_predictions.LayerNorm", "head_norm"),
        Tensor("generator_lm_head.bias", ("vocab_bias",)),
        *dense(_CLASSIFIERS.get(config.head, "classifier"), "classifier"),
    )


def architecture(config: EncoderConfig) -> str:
    """The architecture that has this configuration's head."""
    return HEADS[config.head]


def obstacles(config: EncoderConfig) -> list[str]:
    """Why this family cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    embedding_dim = None if config.embedding_size == config.model_dim else config.embedding_size
    return limits(config, HEADS, activation="gelu", embedding_dim=embedding_dim, pooler_activation="gelu")


def to_hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    return {
        **to_values(config),
        "embedding_size": config.embedding_size,
        "type_vocab_size": config.num_types,
        "layer_norm_eps": config.norm_epsilon,
        "classifier_dropout": config.classifier_dropout,
    }


def from_hugging_face_config(values: dict[str, Any]) -> EncoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    embedding_dim = keys.integer("embedding_size", 128)
    config = read(
        keys,
        HEADS,
        activations=("gelu",),  # that of the masked-LM head and the classifier, whatever the layers have
        embedding_dim=None if embedding_dim == keys.integer("hidden_size") else embedding_dim,
        num_types=keys.integer("type_vocab_size", 2),
        norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        classifier_dropout=keys.number("classifier_dropout", None),
        pooler_activation="gelu",
        pooler_dropout=True,
    )
    keys.finish(INERT | {key for key in values if key.startswith("summary_")})  # of another head
    config.validate()
    return config
