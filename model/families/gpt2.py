"""GPT-2 (Radford et al. 2019), and the dense sizes of GPT-3 (Brown et al. 2020), the same network over 2,048 tokens.

Two of GPT-3's printed sizes contradict themselves: XL (1.3B) has 24 heads of 128 in a width of 2,048, and 13B 40 heads
of 128 in a width of 5,140. Taken are 16 heads, and a width of 5,120. GPT-3's layers alternate between dense and locally
banded sparse attention, and its pattern is not published: here all are dense.
"""

from typing import Any

from model.decoder import DecoderConfig
from model.families.keys import INERT, Keys
from model.families.obstacles import divided_heads, fixed_fields
from model.families.weights import Tensor, norm

ARCHITECTURES: tuple[str, ...] = ("GPT2LMHeadModel",)
MODEL_TYPE: str = "gpt2"


def _preset(
    num_layers: int, model_dim: int, num_heads: int, max_length: int = 1024, dropout: float = 0.1
) -> DecoderConfig:
    return DecoderConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        vocab_size=50257,
        max_length=max_length,
        dropout=dropout,
        attention_dropout=dropout,
    )


PRESETS: dict[str, DecoderConfig] = {
    "distilgpt2": _preset(6, 768, 12),
    "gpt2-124m": _preset(12, 768, 12),
    "gpt2-355m": _preset(24, 1024, 16),
    "gpt2-774m": _preset(36, 1280, 20),
    "gpt2-1.5b": _preset(48, 1600, 25),
    "gpt3-125m": _preset(12, 768, 12, 2048, 0.0),
    "gpt3-350m": _preset(24, 1024, 16, 2048, 0.0),
    "gpt3-760m": _preset(24, 1536, 16, 2048, 0.0),
    "gpt3-1.3b": _preset(24, 2048, 16, 2048, 0.0),
    "gpt3-2.7b": _preset(32, 2560, 32, 2048, 0.0),
    "gpt3-6.7b": _preset(32, 4096, 32, 2048, 0.0),
    "gpt3-13b": _preset(40, 5120, 40, 2048, 0.0),
    "gpt3-175b": _preset(96, 12288, 96, 2048, 0.0),
}

_ATTENTION, _MLP = "stack.layers.attention", "stack.layers.mlp"

# Their layers are Conv1D, stored (in, out).
WEIGHTS = (
    Tensor("transformer.wte.weight", ("embedding.table",), inputs=1),
    Tensor("transformer.wpe.weight", ("positions",), inputs=1),
    *norm("transformer.h.{layer}.ln_1", "stack.layers.attention_norm"),
    Tensor(
        "transformer.h.{layer}.attn.c_attn.weight",
        (f"{_ATTENTION}.query", f"{_ATTENTION}.key", f"{_ATTENTION}.value"),
        inputs=1,
    ),
    Tensor(
        "transformer.h.{layer}.attn.c_attn.bias",
        (f"{_ATTENTION}.query_bias", f"{_ATTENTION}.key_bias", f"{_ATTENTION}.value_bias"),
    ),
    Tensor("transformer.h.{layer}.attn.c_proj.weight", (f"{_ATTENTION}.out",), inputs=2),
    Tensor("transformer.h.{layer}.attn.c_proj.bias", (f"{_ATTENTION}.out_bias",)),
    *norm("transformer.h.{layer}.ln_2", "stack.layers.mlp_norm"),
    Tensor("transformer.h.{layer}.mlp.c_fc.weight", (f"{_MLP}.up",), inputs=1),
    Tensor("transformer.h.{layer}.mlp.c_fc.bias", (f"{_MLP}.up_bias",)),
    Tensor("transformer.h.{layer}.mlp.c_proj.weight", (f"{_MLP}.down",), inputs=1),
    Tensor("transformer.h.{layer}.mlp.c_proj.bias", (f"{_MLP}.down_bias",)),
    *norm("transformer.ln_f", "norm"),
    Tensor("lm_head.weight", ("head.table",), inputs=1),
)
PREFIX: str = "transformer."  # absent from files that were saved from the bare GPT2Model, such as those first published
COPIES: dict[str, str] = {"lm_head.weight": "transformer.wte.weight"}  # what a tied model's file may repeat
IGNORED: str = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"  # causal masks, stored as buffers by old versions


def weights(config: DecoderConfig) -> tuple[Tensor, ...]:
    """The table of this model's tensors."""
    return WEIGHTS


def architecture(config: DecoderConfig) -> str:
    """The one that there is."""
    return ARCHITECTURES[0]


def obstacles(config: DecoderConfig) -> list[str]:
    """Why this architecture cannot express `config`: its fields that would have to be otherwise; empty where it can."""
    return fixed_fields(config) + divided_heads(config)


def to_hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """What a config.json says of this model."""
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_embd": config.model_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_size,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_hugging_face_config(values: dict[str, Any]) -> DecoderConfig:
    """The model that a config.json describes. Raises ValueError, in one sentence, for what is not computed here."""
    keys = Keys(values)
    model_dim, num_heads = keys.multiple("n_embd", "n_head")
    dropout, embedding_dropout = keys.number("resid_pdrop", 0.1), keys.number("embd_pdrop", 0.1)
    if embedding_dropout != dropout:
        raise ValueError(
            f"config.json: embd_pdrop={embedding_dropout} and resid_pdrop={dropout} must be equal; "
            "they only matter in training, so set both to the rate to train with"
        )
    keys.choice("activation_function", "gelu_new", ("gelu_new", "gelu_pytorch_tanh"))
    keys.choice("scale_attn_weights", True, (True,))
    keys.choice("scale_attn_by_inverse_layer_idx", False, (False,))
    keys.choice("add_cross_attention", False, (False,))
    keys.choice("is_encoder_decoder", False, (False,))
    keys.choice("pruned_heads", {}, ({},))
    config = DecoderConfig(
        num_layers=keys.integer("n_layer"),
        model_dim=model_dim,
        num_heads=num_heads,
        mlp_dim=keys.integer("n_inner", 4 * model_dim),
        vocab_size=keys.integer("vocab_size"),
        max_length=keys.integer("n_positions"),
        norm_epsilon=keys.number("layer_norm_epsilon", 1e-5),
        dropout=dropout,
        attention_dropout=keys.number("attn_pdrop", 0.1),
        init_std=keys.number("initializer_range", 0.02),
        tie_embeddings=keys.flag("tie_word_embeddings", True),
    )
    # n_ctx repeats n_positions, reorder_and_upcast_attn is another order of the same, and a summary is another head's.
    keys.finish(INERT | {"n_ctx", "reorder_and_upcast_attn"} | {key for key in values if key.startswith("summary_")})
    config.validate()
    return config
