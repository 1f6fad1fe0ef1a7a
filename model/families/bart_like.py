"""What BART and its kin, mBART and Marian, have in common in Hugging Face's folders: tensors, keys of config.json.

`final_logits_bias` is a buffer there, never trained, and zero but in models that came from elsewhere. Where it is zero
it is no weight of ours: a key of our own in config.json, of the same name, says so.

Where `tie_word_embeddings` is false, version 5 of transformers ties none of the tables any more, those of source and
target neither: a model that shares these two must share them with the projection onto the vocabulary too.
"""

from typing import Any

import numpy as np

from model.encoder_decoder import EncoderDecoderConfig
from model.families.keys import INERT, Keys
from model.families.obstacles import ANY, divided_heads, fixed_fields
from model.families.weights import Tensor, linear, norm, projections

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")  # of an attention
ACTIVATIONS: dict[str, Any] = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "swish": "silu", "silu": "silu"}
# Drops things in training alone, which is not done here: within the feed-forward layer, whole layers, of a classifier.
_INERT = INERT | {
    *("activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "classifier_dropout", "classif_dropout"),
    "num_hidden_layers",  # repeats encoder_layers
}


def _attention(theirs: str, ours: str) -> tuple[Tensor, ...]:
    return projections((f"{theirs}.{name}" for name in PROJECTIONS), ours)


def _side(side: str) -> tuple[Tensor, ...]:
    theirs, ours = f"model.{side}.layers.{{layer}}", f"{side}.stack.layers"
    cross = (
        *_attention(f"{theirs}.encoder_attn", f"{ours}.cross_attention"),
        *norm(f"{theirs}.encoder_attn_layer_norm", f"{ours}.cross_norm"),
    )
    return (
        Tensor(f"model.{side}.embed_positions.weight", (f"{side}.positions",), inputs=1),
        *norm(f"model.{side}.layernorm_embedding", f"{side}.embedding_norm"),
        *_attention(f"{theirs}.self_attn", f"{ours}.attention"),
        *norm(f"{theirs}.self_attn_layer_norm", f"{ours}.attention_norm"),
        *(cross if side == "decoder" else ()),
        *linear(f"{theirs}.fc1", f"{ours}.mlp.up"),
        *linear(f"{theirs}.fc2", f"{ours}.mlp.down"),
        *norm(f"{theirs}.final_layer_norm", f"{ours}.mlp_norm"),
        *norm(f"model.{side}.layer_norm", f"{side}.norm"),
    )


_WEIGHTS: tuple[Tensor, ...] = (
    Tensor("model.shared.weight", ("embedding.table",), inputs=1),
    Tensor("model.encoder.embed_tokens.weight", ("source_embedding.table",), inputs=1),
    Tensor("model.decoder.embed_tokens.weight", ("target_embedding.table",), inputs=1),
    *_side("encoder"),
    *_side("decoder"),
    Tensor("lm_head.weight", ("head.table",), inputs=1),
    Tensor("final_logits_bias", ("logit_bias",), ones=1),
)
PREFIX: str = "model."
COPIES: dict[str, str] = {
    "lm_head.weight": "model.decoder.embed_tokens.weight",
    "model.encoder.embed_tokens.weight": "model.shared.weight",
    "model.decoder.embed_tokens.weight": "model.shared.weight",
}
IGNORED: str = r"model\.(encoder|decoder)\.version"  # of the format, stored by old versions
LEARNED: dict[str, Any] = {"embedding_norm": True, "positions": "learned", "position_offset": 2}  # BART's and mBART's


def weights(config: EncoderDecoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return _WEIGHTS


def constants(config: EncoderDecoderConfig) -> dict[str, np.ndarray]:
    """Tensors of their files that are no weights of this model, and what each must be."""
    return {} if config.logit_bias else {"final_logits_bias": np.zeros((1, config.vocab_size), np.float32)}


def preset(num_layers: int, model_dim: int, num_heads: int, **fields: Any) -> EncoderDecoderConfig:
    """A model as BART and mBART are published."""
    return EncoderDecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        activation="gelu",
        dropout=0.1,
        init="normal",
        **fields,
    )


def obstacles(config: EncoderDecoderConfig, **fixed: Any) -> list[str]:
    """The fields of `config` that would have to be otherwise: as `fixed` says, or else as in all of them."""
    usual = {"norm_epsilon": 1e-5, "activation": ANY, "share_embeddings": True}
    found = fixed_fields(config, **usual | fixed) + divided_heads(config)
    if config.activation not in ACTIVATIONS.values():
        found.append("activation=gelu")
    if config.share_embeddings and not config.tie_embeddings:
        found.append("tie_embeddings=True")
    return found


def to_hugging_face_config(config: EncoderDecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    start = {} if config.decoder_start_id is None else {"decoder_start_token_id": config.decoder_start_id}
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "d_model": config.model_dim,
        "encoder_layers": config.num_layers,
        "encoder_ffn_dim": config.mlp_size,
        "encoder_attention_heads": config.num_heads,
        "decoder_layers": config.decoder_layers,
        "decoder_ffn_dim": config.mlp_size,
        "decoder_attention_heads": config.num_heads,
        "activation_function": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "scale_embedding": config.scale_embeddings,
        "init_std": config.init_std,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_embeddings,
        "final_logits_bias": config.logit_bias,
        **start,
    }


def read(keys: Keys, *, start_id: int | None = None, logit_bias: bool = False, **fields: Any) -> EncoderDecoderConfig:
    """The model of a config.json, of which `fields` are known, where norms are and what enters among them.

    Where nothing says it, targets begin with `start_id`, and `logit_bias` is whether there is one. Finishes `keys`.
    Raises ValueError, in one sentence, for what is not computed here.
    """
    for key, value in (
        ("normalize_before", fields["norm_position"] == "before"),
        ("add_final_layer_norm", fields["norm_position"] == "before"),
        ("normalize_embedding", fields["embedding_norm"]),
        ("static_position_embeddings", fields["positions"] == "sinusoidal"),
    ):
        keys.choice(key, value, (value,))
    num_heads = _same(keys, "attention_heads")
    model_dim, _ = keys.multiple("d_model", "encoder_attention_heads")
    keys.choice("is_encoder_decoder", True, (True,))
    keys.choice("is_decoder", False, (False,))
    keys.choice("add_bias_logits", False, (False,))
    keys.choice("pruned_heads", {}, ({},))
    config = EncoderDecoderConfig(
        num_layers=keys.integer("encoder_layers"),
        num_decoder_layers=keys.integer("decoder_layers"),
        model_dim=model_dim,
        num_heads=num_heads,
        mlp_dim=_same(keys, "ffn_dim"),
        vocab_size=keys.integer("vocab_size"),
        max_length=keys.integer("max_position_embeddings"),
        activation=ACTIVATIONS[keys.choice("activation_function", "gelu", tuple(ACTIVATIONS))],
        dropout=keys.number("dropout", 0.1),
        attention_dropout=keys.number("attention_dropout", 0.0),
        scale_embeddings=keys.flag("scale_embedding", False),
        init_std=keys.number("init_std", 0.02),
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        logit_bias=keys.flag("final_logits_bias", logit_bias),
        decoder_start_id=keys.integer("decoder_start_token_id", start_id, at_least=0),
        **fields,
    )
    keys.finish(_INERT)
    config.validate()
    return config


def _same(keys: Keys, name: str) -> int:
    """A number that the encoder's and the decoder's keys agree on."""
    encoder, decoder = keys.integer(f"encoder_{name}"), keys.integer(f"decoder_{name}")
    if encoder != decoder:
        raise ValueError(f"config.json: encoder_{name}={encoder} and decoder_{name}={decoder} must be equal")
    return encoder
