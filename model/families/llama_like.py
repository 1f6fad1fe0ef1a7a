"""What Llama and PaLM, in Cohere's form, have in common in Hugging Face's folders: tensors, keys, and limits.

Both are decoders with gated layers and rotary positions, and without biases.
"""

from typing import Any

from model.decoder import DecoderConfig
from model.families.keys import INERT, Keys
from model.families.obstacles import fixed_fields
from model.families.weights import Tensor, matrix
from model.positions import RopeScaling

PREFIX: str = "model."
COPIES: dict[str, str] = {"lm_head.weight": "model.embed_tokens.weight"}  # what a tied model's file may repeat
IGNORED: str = (
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # a function of the configuration, stored by old versions
)
FIXED: dict[str, Any] = {"activation": "swiglu", "positions": "rope", "use_bias": False}


def table(*, neighbours: bool = False) -> tuple[Tensor, ...]:
    """The tensors; `neighbours` is how rotary positions turn the dimensions of queries and keys (see Tensor)."""
    layer, attention, mlp = "model.layers.{layer}", "stack.layers.attention", "stack.layers.mlp"
    return (
        Tensor("model.embed_tokens.weight", ("embedding.table",), inputs=1),
        Tensor(f"{layer}.input_layernorm.weight", ("stack.layers.attention_norm.scale",)),
        matrix(f"{layer}.self_attn.q_proj", f"{attention}.query", neighbours=neighbours),
        matrix(f"{layer}.self_attn.k_proj", f"{attention}.key", neighbours=neighbours),
        matrix(f"{layer}.self_attn.v_proj", f"{attention}.value"),
        matrix(f"{layer}.self_attn.o_proj", f"{attention}.out", inputs=2),
        Tensor(f"{layer}.post_attention_layernorm.weight", ("stack.layers.mlp_norm.scale",)),
        matrix(f"{layer}.mlp.gate_proj", f"{mlp}.gate_up", gate=0),
        matrix(f"{layer}.mlp.up_proj", f"{mlp}.gate_up", gate=1),
        matrix(f"{layer}.mlp.down_proj", f"{mlp}.down"),
        Tensor("model.norm.weight", ("norm.scale",)),
        Tensor("lm_head.weight", ("head.table",), inputs=1),
    )


def obstacles(config: DecoderConfig, **fixed: Any) -> list[str]:
    """Why an architecture cannot express `config`: its fields that would have to be otherwise, as `fixed` says."""
    found = fixed_fields(config, **FIXED, **fixed)
    if config.model_dim % config.num_heads:  # demanded although head_dim may be anything
        found.append("model_dim a multiple of num_heads")
    return found


def to_values(config: DecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model, but for what only one of the families has.

    Dropout of the residual stream has no key.
    """
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def read(
    keys: Keys, *, rope: tuple[float, RopeScaling | None], tied: bool, inert: frozenset[str] = INERT, **fields: Any
) -> DecoderConfig:
    """The model that the keys of `to_values` describe, with the `fields` that only one family has. Finishes `keys`.

    `rope` is what `read_rope` gave, and `tied` whether embeddings are where nothing says it. Raises ValueError, in one
    sentence, for what is not computed here.
    """
    model_dim, num_heads = keys.multiple("hidden_size", "num_attention_heads")
    _, num_kv_heads = keys.multiple("num_attention_heads", "num_key_value_heads", default=num_heads)
    keys.choice("hidden_act", "silu", ("silu", "swish"))
    keys.choice("attention_bias", False, (False,))
    rope_theta, rope_scaling = rope
    config = DecoderConfig(
        num_layers=keys.integer("num_hidden_layers"),
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=keys.integer("head_dim", model_dim // num_heads),
        mlp_dim=keys.integer("intermediate_size"),
        vocab_size=keys.integer("vocab_size"),
        max_length=keys.integer("max_position_embeddings"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        attention_dropout=keys.number("attention_dropout", 0.0),
        init_std=keys.number("initializer_range", 0.02),
        tie_embeddings=keys.flag("tie_word_embeddings", tied),
        **FIXED,
        **fields,
    )
    keys.finish(inert)
    config.validate()
    return config


def read_rope(keys: Keys, theta: float, kinds: tuple[str, ...]) -> tuple[float, RopeScaling | None]:
    """The base and the scaling of rotary positions.

    They are in `rope_theta` and `rope_scaling`, or in version 5's `rope_parameters`. `theta` is the base where nothing
    says it, and `kinds` are those of scaling that the architecture has.
    """
    outer = keys.number("rope_theta", None, at_least=1)
    found = [inner for inner in (keys.inside("rope_scaling"), keys.inside("rope_parameters")) if inner]
    read = {_rope_parameters(inner, outer, theta, kinds) for inner in found}
    if len(read) > 1:
        raise ValueError("config.json: rope_scaling and rope_parameters contradict each other; remove the wrong one")
    return read.pop() if read else (theta if outer is None else outer, None)


def _rope_parameters(
    keys: Keys, outer: float | None, default: float, kinds: tuple[str, ...]
) -> tuple[float, RopeScaling | None]:
    theta = keys.number("rope_theta", default if outer is None else outer, at_least=1)
    if outer is not None and theta != outer:
        raise ValueError(
            f"config.json: rope_theta is {outer} and, among the rope parameters, {theta}; remove the wrong one"
        )
    kind = keys.choice("rope_type", keys.choice("type", "default", kinds), kinds)
    keys.choice("partial_rotary_factor", 1.0, (1.0, 1))
    scaling = None
    if kind == "llama3":
        low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
        if low >= high:
            raise ValueError(f"config.json: low_freq_factor={low} must be less than high_freq_factor={high}")
        original = keys.integer("original_max_position_embeddings")
        scaling = RopeScaling(keys.number("factor", at_least=1), low, high, original)
    keys.finish()
    return theta, scaling
