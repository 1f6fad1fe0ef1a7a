"""PaLM (Chowdhery et al. 2022), whose Hugging Face form is Cohere's: the same layer in parallel, with scaled logits.

Cohere turns neighbouring dimensions of a head together, and this program those half a head apart: queries and keys are
reordered on the way. Norms have no bias, and theirs are computed as ours, in float32.
"""

from typing import Any

from model.decoder import DecoderConfig
from model.families import llama_like
from model.families.keys import Keys
from model.families.obstacles import ANY
from model.families.weights import Tensor

ARCHITECTURES: tuple[str, ...] = ("CohereForCausalLM",)
MODEL_TYPE: str = "cohere"
PREFIX, COPIES, IGNORED = llama_like.PREFIX, llama_like.COPIES, llama_like.IGNORED
_PARALLEL: dict[str, Any] = {"norm_position": "parallel", "norm_bias": False}


def _preset(num_layers: int, num_heads: int, model_dim: int) -> DecoderConfig:
    return DecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=1,
        head_dim=256,
        vocab_size=256_000,
        max_length=2048,
        init="fan_in",
        logit_scale=model_dim**-0.5,
        **llama_like.FIXED,
        **_PARALLEL,
    )


PRESETS: dict[str, DecoderConfig] = {
    "palm-8b": _preset(32, 16, 4096),
    "palm-62b": _preset(64, 32, 8192),
    "palm-540b": _preset(118, 48, 18_432),
}

WEIGHTS = llama_like.table(neighbours=True)


def weights(config: DecoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return WEIGHTS


def architecture(config: DecoderConfig) -> str:
    """The one that there is."""
    return ARCHITECTURES[0]


def obstacles(config: DecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return llama_like.obstacles(config, **_PARALLEL, logit_scale=ANY)


def to_hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model, except for dropout of the residual stream, which has no key."""
    return {
        **llama_like.to_values(config),
        "layer_norm_eps": config.norm_epsilon,
        "logit_scale": config.logit_scale,
        "use_qk_norm": False,
    }


def from_hugging_face_config(values: dict[str, Any]) -> DecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    keys.choice("use_qk_norm", False, (False,))
    return llama_like.read(
        keys,
        rope=llama_like.read_rope(keys, 500_000.0, ("default",)),
        tied=True,
        norm_epsilon=keys.number("layer_norm_eps", 1e-5),
        init="fan_in",
        logit_scale=keys.number("logit_scale", 0.0625),
        **_PARALLEL,
    )
