"""Llama 1 (Touvron et al. 2023a), 2 (2023b), 3, 3.1, 3.2 and 3.3 (Grattafiori et al. 2024)."""

from typing import Any

from model.decoder import DecoderConfig
from model.families.keys import INERT, Keys
from model.families.obstacles import ANY, fixed_fields
from model.families.weights import Tensor
from model.positions import RopeScaling

ARCHITECTURES: tuple[str, ...] = ("LlamaForCausalLM",)
MODEL_TYPE: str = "llama"


def _preset(
    num_layers: int, model_dim: int, num_heads: int, mlp_dim: int, *, version: str, **fields: Any
) -> DecoderConfig:
    if version in ("1", "2"):
        fields |= {"vocab_size": 32_000, "max_length": 2048 if version == "1" else 4096}
    else:
        fields |= {"num_kv_heads": 8, "vocab_size": 128_256, "rope_theta": 500_000.0}
        fields |= {"max_length": 8192 if version == "3" else 131_072}
    if version in ("3.1", "3.2", "3.3"):
        fields["rope_scaling"] = RopeScaling(factor=32.0 if version == "3.2" else 8.0)
    return DecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        norm="rms",
        norm_epsilon=1e-6 if version == "1" else 1e-5,
        activation="swiglu",
        positions="rope",
        use_bias=False,
        tie_embeddings=version == "3.2",
        **fields,
    )


PRESETS: dict[str, DecoderConfig] = {
    "llama1-7b": _preset(32, 4096, 32, 11_008, version="1"),
    "llama1-13b": _preset(40, 5120, 40, 13_824, version="1"),
    "llama1-33b": _preset(60, 6656, 52, 17_920, version="1"),
    "llama1-65b": _preset(80, 8192, 64, 22_016, version="1"),
    "llama2-7b": _preset(32, 4096, 32, 11_008, version="2"),
    "llama2-13b": _preset(40, 5120, 40, 13_824, version="2"),
    "llama2-70b": _preset(80, 8192, 64, 28_672, version="2", num_kv_heads=8),
    "llama3-8b": _preset(32, 4096, 32, 14_336, version="3"),
    "llama3-70b": _preset(80, 8192, 64, 28_672, version="3"),
    "llama3.1-8b": _preset(32, 4096, 32, 14_336, version="3.1"),
    "llama3.1-70b": _preset(80, 8192, 64, 28_672, version="3.1"),
    "llama3.1-405b": _preset(126, 16_384, 128, 53_248, version="3.1"),
    "llama3.2-1b": _preset(16, 2048, 32, 8192, version="3.2"),
    "llama3.2-3b": _preset(28, 3072, 24, 8192, version="3.2"),
    "llama3.3-70b": _preset(80, 8192, 64, 28_672, version="3.3"),
}

_ATTENTION, _MLP = "stack.layers.attention", "stack.layers.mlp"

# Their layers are Linear, stored (out, in). Rotary pairs are halves in both, so queries and keys keep their order.
WEIGHTS = (
    Tensor("model.embed_tokens.weight", ("embedding.table",), inputs=1),
    Tensor("model.layers.{layer}.input_layernorm.weight", ("stack.layers.attention_norm.scale",)),
    Tensor("model.layers.{layer}.self_attn.q_proj.weight", (f"{_ATTENTION}.query",), inputs=1, transposed=True),
    Tensor("model.layers.{layer}.self_attn.k_proj.weight", (f"{_ATTENTION}.key",), inputs=1, transposed=True),
    Tensor("model.layers.{layer}.self_attn.v_proj.weight", (f"{_ATTENTION}.value",), inputs=1, transposed=True),
    Tensor("model.layers.{layer}.self_attn.o_proj.weight", (f"{_ATTENTION}.out",), inputs=2, transposed=True),
    Tensor("model.layers.{layer}.post_attention_layernorm.weight", ("stack.layers.mlp_norm.scale",)),
    Tensor("model.layers.{layer}.mlp.gate_proj.weight", (f"{_MLP}.gate_up",), inputs=1, transposed=True, gate=0),
    Tensor("model.layers.{layer}.mlp.up_proj.weight", (f"{_MLP}.gate_up",), inputs=1, transposed=True, gate=1),
    Tensor("model.layers.{layer}.mlp.down_proj.weight", (f"{_MLP}.down",), inputs=1, transposed=True),
    Tensor("model.norm.weight", ("norm.scale",)),
    Tensor("lm_head.weight", ("head.table",), inputs=1),
)
PREFIX: str = "model."
COPIES: dict[str, str] = {"lm_head.weight": "model.embed_tokens.weight"}  # what a tied model's file may repeat
IGNORED: str = (
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # a function of the configuration, stored by old versions
)


def weights(config: DecoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return WEIGHTS


def architecture(config: DecoderConfig) -> str:
    """The one that there is."""
    return ARCHITECTURES[0]


def obstacles(config: DecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    found = fixed_fields(config, norm="rms", activation="swiglu", positions="rope", rope_scaling=ANY, use_bias=False)
    if config.model_dim % config.num_heads:  # demanded although head_dim may be anything
        found.append("model_dim a multiple of num_heads")
    return found


def to_hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model, except for dropout of the residual stream, which has no key.

    Rotary positions are written as all versions of transformers read them (version 5 itself writes `rope_parameters`).
    """
    scaling = config.rope_scaling
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
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_length,
        },
        "attention_bias": False,
        "mlp_bias": False,
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
    keys.choice("mlp_bias", False, (False,))
    keys.choice("rope_interleaved", False, (False,))
    keys.choice("partial_rotary_factor", 1.0, (1.0, 1))
    keys.choice("add_cross_attention", False, (False,))
    keys.choice("is_encoder_decoder", False, (False,))
    keys.choice("pruned_heads", {}, ({},))
    rope_theta, rope_scaling = _rope(keys)
    config = DecoderConfig(
        num_layers=keys.integer("num_hidden_layers"),
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=keys.integer("head_dim", model_dim // num_heads),
        mlp_dim=keys.integer("intermediate_size"),
        vocab_size=keys.integer("vocab_size"),
        max_length=keys.integer("max_position_embeddings"),
        norm="rms",
        norm_epsilon=keys.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        positions="rope",
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        use_bias=False,
        attention_dropout=keys.number("attention_dropout", 0.0),
        init_std=keys.number("initializer_range", 0.02),
        tie_embeddings=keys.flag("tie_word_embeddings", False),
    )
    keys.finish(INERT | {"max_sequence_length", "is_llama_config"})
    config.validate()
    return config


def _rope(keys: Keys) -> tuple[float, RopeScaling | None]:
    """The base and the scaling, from `rope_theta` and `rope_scaling` or from version 5's `rope_parameters`."""
    outer = keys.number("rope_theta", None, at_least=1)
    found = [inner for inner in (keys.inside("rope_scaling"), keys.inside("rope_parameters")) if inner]
    if not found:
        return 10_000.0 if outer is None else outer, None
    read = {_rope_parameters(inner, outer) for inner in found}
    if len(read) > 1:
        raise ValueError("config.json: rope_scaling and rope_parameters contradict each other; remove the wrong one")
    return read.pop()


def _rope_parameters(keys: Keys, outer: float | None) -> tuple[float, RopeScaling | None]:
    theta = keys.number("rope_theta", outer, at_least=1)
    if outer is not None and theta != outer:
        raise ValueError(
            f"config.json: rope_theta is {outer} and, among the rope parameters, {theta}; remove the wrong one"
        )
    kinds = ("default", "llama3")
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
    return 10_000.0 if theta is None else theta, scaling
