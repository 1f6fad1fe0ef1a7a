"""PaLM (Chowdhery et al. 2022), whose Hugging Face form is Cohere's: the same layer in parallel, with scaled logits.

Cohere turns neighbouring dimensions of a head together, and this program those half a head apart: queries and keys are
reordered on the way. Norms have no bias, and theirs are computed as ours, in float32.
"""

from typing import Any

from model.decoder import DecoderConfig
from model.families.keys import INERT, Keys
from model.families.obstacles import ANY, fixed_fields
from model.families.weights import Tensor

ARCHITECTURES: tuple[str, ...] = ("CohereForCausalLM",)
MODEL_TYPE: str = "cohere"


def _preset(num_layers: int, num_heads: int, model_dim: int) -> DecoderConfig:
    return DecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=1,
        head_dim=256,
        vocab_size=256_000,
        max_length=2048,
        norm_position="parallel",
        norm_bias=False,
        activation="swiglu",
        positions="rope",
        use_bias=False,
        init="fan_in",
        logit_scale=model_dim**-0.5,
    )


PRESETS: dict[str, DecoderConfig] = {
    "palm-8b": _preset(32, 16, 4096),
    "palm-62b": _preset(64, 32, 8192),
    "palm-540b": _preset(118, 48, 18_432),
}

_ATTENTION, _MLP = "stack.layers.attention", "stack.layers.mlp"

WEIGHTS = (
    Tensor("model.embed_tokens.weight", ("embedding.table",), inputs=1),
    Tensor("model.layers.{layer}.input_layernorm.weight", ("stack.layers.attention_norm.scale",)),
    Tensor(
        "model.layers.{layer}.self_attn.q_proj.weight",
        (f"{_ATTENTION}.query",),
        inputs=1,
        transposed=True,
        neighbours=True,
    ),
    Tensor(
        "model.layers.{layer}.self_attn.k_proj.weight",
        (f"{_ATTENTION}.key",),
        inputs=1,
        transposed=True,
        neighbours=True,
    ),
    Tensor("model.layers.{layer}.self_attn.v_proj.weight", (f"{_ATTENTION}.value",), inputs=1, transposed=True),
    Tensor("model.layers.{layer}.self_attn.o_proj.weight", (f"{_ATTENTION}.out",), inputs=2, transposed=True),
    Tensor("model.layers.{layer}.mlp.gate_proj.weight", (f"{_MLP}.gate_up",), inputs=1, transposed=True, gate=0),
    Tensor("model.layers.{layer}.mlp.up_proj.weight", (f"{_MLP}.gate_up",), inputs=1, transposed=True, gate=1),
    Tensor("model.layers.{layer}.mlp.down_proj.weight", (f"{_MLP}.down",), inputs=1, transposed=True),
    Tensor("model.norm.weight", ("norm.scale",)),
    Tensor("lm_head.weight", ("head.table",), inputs=1),
)
PREFIX: str = "model."
COPIES: dict[str, str] = {"lm_head.weight": "model.embed_tokens.weight"}
IGNORED: str = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def weights(config: DecoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return WEIGHTS


def architecture(config: DecoderConfig) -> str:
    """The one that there is."""
    return ARCHITECTURES[0]


def obstacles(config: DecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    found = fixed_fields(
        config,
        norm_position="parallel",
        norm_bias=False,
        activation="swiglu",
        positions="rope",
        use_bias=False,
        logit_scale=ANY,
    )
    if config.model_dim % config.num_heads:
        found.append("model_dim a multiple of num_heads")
    return found


def to_hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model, except for dropout of the residual stream, which has no key."""
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
        "layer_norm_eps": config.norm_epsilon,
        "logit_scale": config.logit_scale,
        "rope_theta": config.rope_theta,
        "use_qk_norm": False,
        "attention_bias": False,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_hugging_face_config(values: dict[str, Any]) -> DecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    model_dim, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    num_kv_heads = keys.integer("num_key_value_heads", num_heads)
    for name, value, divisor, divisor_value in (
        ("hidden_size", model_dim, "num_attention_heads", num_heads),
        ("num_attention_heads", num_heads, "num_key_value_heads", num_kv_heads),
    ):
        if value % divisor_value:
            raise ValueError(f"config.json: {name}={value} must be a multiple of {divisor}={divisor_value}")
    keys.choice("hidden_act", "silu", ("silu", "swish"))
    keys.choice("attention_bias", False, (False,))
    keys.choice("use_qk_norm", False, (False,))
    config = DecoderConfig(
        num_layers=keys.integer("num_hidden_layers"),
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=keys.integer("head_dim", model_dim // num_heads),
        mlp_dim=keys.integer("intermediate_size"),
        vocab_size=keys.integer("vocab_size"),
        max_length=keys.integer("max_position_embeddings"),
        norm_position="parallel",
        norm_bias=False,
        norm_epsilon=keys.number("layer_norm_eps", 1e-5),
        activation="swiglu",
        positions="rope",
        rope_theta=_rope_theta(keys),
        use_bias=False,
        attention_dropout=keys.number("attention_dropout", 0.0),
        init_std=keys.number("initializer_range", 0.02),
        init="fan_in",
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        logit_scale=keys.number("logit_scale", 0.0625),
    )
    keys.finish(INERT)
    config.validate()
    return config


def _rope_theta(keys: Keys) -> float:
    """The base of rotary positions, from `rope_theta` or from version 5's `rope_parameters`."""
    outer, inner = keys.number("rope_theta", None, at_least=1), keys.inside("rope_parameters")
    if inner is None:
        return 500_000.0 if outer is None else outer
    inner.choice("rope_type", "default", ("default",))
    theta = inner.number("rope_theta", outer, at_least=1)
    inner.finish()
    if outer is not None and theta != outer:
        raise ValueError(
            f"config.json: rope_theta is {outer} and, among the rope parameters, {theta}; remove the wrong one"
        )
    return 500_000.0 if theta is None else theta
