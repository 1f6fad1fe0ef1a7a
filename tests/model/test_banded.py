"""Dense and banded layers in turns, as GPT-3 has them, against GPT-Neo: another program's weights and logits."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.decode import Sampling, extend, start, unstack
from model.decoder import Decoder, DecoderConfig
from model.families import gpt2
from model.families.weights import Layout, Tensor
from model.parameters import declarations, merge, split

pytestmark = pytest.mark.core

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "gpt_neo.npz"
CONFIG = DecoderConfig(
    num_layers=4, model_dim=16, num_heads=4, vocab_size=70, max_length=24, attention_scale=1.0, window=5
)

# GPT-2's table, but for linear layers stored (out, in), and queries, keys and values apart and without biases.
_ATTENTION, _MLP, _THEIRS = "stack.layers.attention", "stack.layers.mlp", "transformer.h.{layer}.attn.attention"
TABLE = (
    *(row for row in gpt2.WEIGHTS if ".attn." not in row.name and ".mlp." not in row.name),
    *(
        Tensor(f"{_THEIRS}.{letter}_proj.weight", (f"{_ATTENTION}.{name}",), inputs=1, transposed=True)
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))
    ),
    *(Tensor(f"none.{{layer}}.{name}", (f"{_ATTENTION}.{name}_bias",)) for name in ("query", "key", "value")),
    Tensor(f"{_THEIRS}.out_proj.weight", (f"{_ATTENTION}.out",), inputs=2, transposed=True),
    Tensor(f"{_THEIRS}.out_proj.bias", (f"{_ATTENTION}.out_bias",)),
    Tensor("transformer.h.{layer}.mlp.c_fc.weight", (f"{_MLP}.up",), inputs=1, transposed=True),
    Tensor("transformer.h.{layer}.mlp.c_fc.bias", (f"{_MLP}.up_bias",)),
    Tensor("transformer.h.{layer}.mlp.c_proj.weight", (f"{_MLP}.down",), inputs=1, transposed=True),
    Tensor("transformer.h.{layer}.mlp.c_proj.bias", (f"{_MLP}.down_bias",)),
)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file.items())


@pytest.fixture(scope="module")
def model_and_layout(golden):
    abstract = jax.eval_shape(lambda: Decoder(CONFIG, nnx.Rngs(params=0)))
    layout = Layout(TABLE, declarations(abstract), CONFIG.vocab_size)
    shapes = dict(layout.shapes())
    weights = {name: golden.get(f"weight/{name}", np.zeros(shape, np.float32)) for name, shape in shapes.items()}
    return split(abstract)[0], layout, layout.from_hugging_face(weights.__getitem__, np.float32)


def test_logits_and_gradients_are_those_of_gpt_neo(golden, model_and_layout):
    skeleton, layout, params = model_and_layout
    tokens, expected = golden["tokens"], golden["logits"]

    def loss(params):
        logits = merge(skeleton, params)(tokens)
        log_p = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.abs(logits[..., : CONFIG.vocab_size] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert abs(value - golden["loss"]) <= 1e-5 * golden["loss"]
    theirs = dict(layout.to_hugging_face(gradients))
    for key in (key for key in golden if key.startswith("gradient/")):
        difference = np.abs(theirs[key.removeprefix("gradient/")] - golden[key]).max()
        assert difference <= 1e-5 * np.abs(golden[key]).max(), key


def test_decoding_step_by_step_sees_the_same_bands(golden, model_and_layout):
    skeleton, _, params = model_and_layout
    model, tokens = merge(skeleton, params), golden["tokens"][:, :8]
    bare, layers = unstack(merge(skeleton, params))
    decoding = start(bare, layers, tokens, jnp.full(len(tokens), 8), cache_length=24)
    _, drawn, _ = extend(
        bare, layers, decoding, jax.random.key(0), jnp.array([-2]), num_tokens=12, sampling=Sampling(0.0)
    )
    whole = np.concatenate([tokens, drawn], axis=1)
    np.testing.assert_array_equal(np.asarray(model(whole)[:, 7:-1]).argmax(-1), drawn)
