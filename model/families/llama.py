"""Llama 1 (Touvron et al. 2023a), 2 (2023b), 3, 3.1, 3.2 and 3.3 (Grattafiori et al. 2024)."""

from typing import Any

from model.decoder import DecoderConfig
from model.families import llama_like
from model.families.keys import INERT, Keys
from model.families.obstacles import ANY
from model.families.weights import Tensor
from model.positions import RopeScaling

ARCHITECTURES: tuple[str, ...] = ("LlamaForCausalLM",)
MODEL_TYPE: str = "llama"
PREFIX, COPIES, IGNORED = llama_like.PREFIX, llama_like.COPIES, llama_like.IGNORED


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
        tie_embeddings=version == "3.2",
        **llama_like.FIXED,
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

WEIGHTS = llama_like.table()  # rotary pairs are halves in both, so queries and keys keep their order


def weights(config: DecoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return WEIGHTS


def architecture(config: DecoderConfig) -> str:
    """The one that there is."""
    return ARCHITECTURES[0]


def obstacles(config: DecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return llama_like.obstacles(config, norm="rms", rope_scaling=ANY)


def to_hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model, except for dropout of the residual stream, which has no key.

    Rotary positions are written as all versions of transformers read them (version 5 itself writes `rope_parameters`).
    """
    scaling = config.rope_scaling
    return {
        **llama_like.to_values(config),
        "rms_norm_eps": config.norm_epsilon,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_length,
        },
        "mlp_bias": False,
    }


def from_hugging_face_config(values: dict[str, Any]) -> DecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    keys.choice("mlp_bias", False, (False,))
    keys.choice("rope_interleaved", False, (False,))
    keys.choice("partial_rotary_factor", 1.0, (1.0, 1))
    keys.choice("add_cross_attention", False, (False,))
    keys.choice("is_encoder_decoder", False, (False,))
    keys.choice("pruned_heads", {}, ({},))
    return llama_like.read(
        keys,
        rope=llama_like.read_rope(keys, 10_000.0, ("default", "llama3")),
        tied=False,
        inert=INERT | {"max_sequence_length", "is_llama_config"},
        norm="rms",
        norm_epsilon=keys.number("rms_norm_eps", 1e-6),
    )
