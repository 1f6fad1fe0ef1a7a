"""What a decoder may see: nothing later, nothing of another document; and that every path to it computes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.block import Block, Context
from model.decode import Sampling, choose, extend, start, unstack
from model.decoder import Decoder
from model.kernels import attend
from model.mask import Mask
from model.parameters import declarations, merge, split
from model.stack import REMAT

pytestmark = pytest.mark.core


def build(config) -> Decoder:
    return Decoder(config, nnx.Rngs(params=jax.random.key(0)))


def sensitivity(model, tokens, segments=None):
    """Whether the logits at place l (rows) move with the embedding at place m (columns), [L, L], by exact zeros."""
    positions = jnp.arange(tokens.shape[1])[None]

    def logits_sum(x_BLD, place):
        return model.logits(model.transform(x_BLD, positions, segments)[0])[0, place].sum()

    gradients = jax.vmap(jax.grad(logits_sum), in_axes=(None, 0))(model.embed(tokens, positions), positions[0])
    return np.asarray(jnp.abs(gradients[:, 0]).max(-1) > 0)


def test_no_token_sees_a_later_one(tiny):
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, 70)
    np.testing.assert_array_equal(sensitivity(build(tiny), tokens), np.tri(12, dtype=bool))


def test_no_token_sees_another_document(tiny):
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, 70)
    segments = jnp.array([[1] * 5 + [2] * 4 + [3] * 3])
    expected = np.tri(12, dtype=bool) & (np.asarray(segments[0])[:, None] == np.asarray(segments[0])[None])
    np.testing.assert_array_equal(sensitivity(build(tiny), tokens, segments), expected)


def test_a_packed_document_is_computed_as_if_alone(tiny):
    model = build(tiny)
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, 70)
    alone = model(tokens[:, 5:])
    packed = model(tokens, jnp.array([[*range(5), *range(7)]]), jnp.array([[1] * 5 + [2] * 7]))[:, 5:]
    np.testing.assert_allclose(packed, alone, atol=1e-5)


@pytest.mark.parametrize("length", [64, 256, 200])
def test_the_kernels_agree_with_the_reference(length):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, length, heads, 16)) for key, heads in zip(keys, (4, 2, 2), strict=False))
    segments = jnp.sort(jax.random.randint(keys[3], (2, length), 1, 4), axis=1)
    mask = Mask(causal=True, q_segments_BL=segments, k_segments_BM=segments)

    def run(implementation):
        def weighed(q, k, v):
            out = attend(q, k, v, mask, scale=0.25, implementation=implementation)
            return jnp.sin(out).sum(), out

        return jax.jit(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ((_, out), gradients), ((_, reference), reference_gradients) = run("xla"), run("reference")
    np.testing.assert_allclose(out, reference, atol=2e-6)
    for actual, expected in zip(gradients, reference_gradients, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("remat", REMAT)
def test_rematerialisation_changes_no_gradient(tiny_llama, remat):
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 70)

    def gradient(config):
        skeleton, params = split(build(config))
        return jax.jit(jax.grad(lambda params: jnp.sin(merge(skeleton, params)(tokens)[..., :70]).sum()))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradient(dataclasses.replace(tiny_llama, remat=remat, unroll=2)),
        gradient(tiny_llama),
    )


def test_captures_of_every_layer(tiny):
    model = build(tiny)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 70)
    names = ("hidden", "attention_scores", "attention_probabilities")
    captured_hidden, captured = model.hidden(tokens, capture=names)
    hidden, nothing = model.hidden(tokens)
    np.testing.assert_allclose(captured_hidden, hidden, atol=1e-5)
    assert nothing == {}
    assert {name: captured[name].shape for name in names} == {
        "hidden": (2, 2, 12, 32),
        "attention_scores": (2, 2, 4, 12, 12),
        "attention_probabilities": (2, 2, 4, 12, 12),
    }
    np.testing.assert_allclose(captured["attention_probabilities"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(model.norm(captured["hidden"][-1]), hidden, atol=1e-5)


def test_per_layer_data_reaches_its_layer(tiny):
    model = build(tiny)
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, 70)
    x = model.embed(tokens, jnp.arange(12)[None])
    context = Context(Mask(), model.rope(jnp.arange(12)[None]))

    def windowed(context, window):
        return dataclasses.replace(context, mask=Mask(window=window))

    _, captured = model.stack(
        x, context, per_layer=windowed, per_layer_data=jnp.array([2, 12]), capture=("attention_probabilities",)
    )
    seen = np.asarray(captured["attention_probabilities"][:, 0, 0] > 0)
    np.testing.assert_array_equal(seen[0], np.tri(12, dtype=bool) & ~np.tri(12, k=-2, dtype=bool))
    np.testing.assert_array_equal(seen[1], np.tri(12, dtype=bool))


def test_cached_decoding_is_uncached_decoding(tiny):
    model = build(tiny)
    outer, layers = unstack(build(tiny))
    prompts = np.random.default_rng(0).integers(0, 70, (3, 16), np.int32)
    lengths = np.array([16, 5, 9], np.int32)
    decoding = start(outer, layers, prompts, lengths, cache_length=32)
    _, drawn, log_p = extend(
        outer,
        layers,
        decoding,
        jax.random.key(0),
        jnp.array([], jnp.int32),
        num_tokens=8,
        sampling=Sampling(temperature=0),
    )
    for row, length in enumerate(lengths):
        text = np.zeros((1, 24), np.int32)
        text[0, :length] = prompts[row, :length]
        text[0, length : length + 8] = drawn[row]
        log_softmax = jax.nn.log_softmax(model(jnp.asarray(text))[0, length - 1 : length + 7])
        np.testing.assert_array_equal(drawn[row], log_softmax.argmax(-1))
        np.testing.assert_allclose(log_p[row], log_softmax.max(-1), atol=1e-5)


def test_a_row_that_stopped_draws_no_more(tiny_gpt2):
    outer, layers = unstack(build(tiny_gpt2))
    decoding = start(outer, layers, np.zeros((2, 4), np.int32), np.array([4, 2], np.int32), cache_length=24)
    _, drawn, _ = extend(
        outer, layers, decoding, jax.random.key(0), jnp.arange(0, 70, 4), num_tokens=16, sampling=Sampling()
    )
    for row in np.asarray(drawn):
        stop = np.flatnonzero(row % 4 == 0)[0]
        assert (row[: stop + 1] >= 0).all()
        assert (row[stop + 1 :] == -1).all()


def test_truncated_sampling_draws_only_what_it_may():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 400)

    def drawn(sampling):
        return set(jax.vmap(lambda key: choose(logits, key[None], sampling)[0])(keys).tolist())

    assert drawn(Sampling()) == {0, 1, 2, 3}
    assert drawn(Sampling(temperature=0)) == {0}
    assert drawn(Sampling(top_k=2)) == {0, 1}
    assert drawn(Sampling(top_p=0.65)) == {0, 1}
    assert drawn(Sampling(top_p=0.75)) == {0, 1, 2}
    assert drawn(Sampling(temperature=0.01)) == {0}


def test_bfloat16_parameters_compute_in_bfloat16_near_float32(tiny):
    model = build(tiny)
    skeleton, params = split(model)
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 70)
    half = merge(skeleton, {name: p.astype(jnp.bfloat16) for name, p in params.items()})(tokens)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half[..., :70].astype(jnp.float32), model(tokens)[..., :70], atol=0.03)


def test_bfloat16_does_not_round_away_what_many_tokens_say_of_a_weight(tiny_gpt2):
    """Biases above all: their gradient is a sum over all tokens."""
    skeleton, params = split(Block(tiny_gpt2, nnx.Rngs(params=jax.random.key(0))))
    x_BLD = jax.random.normal(jax.random.key(1), (16, 64, 32))

    def loss(params, dtype):
        block = merge(skeleton, {name: p.astype(dtype) for name, p in params.items()})
        return jnp.sin(block(x_BLD.astype(dtype), Context(Mask()))[0].astype(jnp.float32)).sum()

    half, whole = (jax.jit(jax.grad(loss), static_argnums=1)(params, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    for name, expected in whole.items():
        # The true gradient of a key bias is zero: what is left is rounding on the scale of the query bias.
        scale = np.abs(whole[name.replace("key_bias", "query_bias")]).max()
        assert np.abs(half[name] - expected).max() <= 0.03 * scale, name


def test_every_parameter_is_declared(tiny):
    declared = declarations(jax.eval_shape(lambda: build(tiny)))
    assert set(declared) == set(split(build(tiny))[1])
    assert {d.kind for d in declared.values()} <= {"matrix", "bias", "scale", "embedding"}
    for name, d in declared.items():
        assert len(d.axes) == len(d.shape)
        assert ("layers" in d.axes) == name.startswith("stack.layers.")
