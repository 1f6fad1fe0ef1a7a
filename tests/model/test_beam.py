"""Beam search: against every hypothesis there is, against a plain one in Python, and greedily."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from model.beam import Beam, beam_search, search
from model.decode import Sampling, extend, start_from_source, unstack
from model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from model.parameters import declarations, merge, split
from model.sharding import MESH_AXES, partition_spec

pytestmark = pytest.mark.core

END = 1
Hypothesis = tuple[float, list[int]]  # its score and its tokens


def divisor(beam: Beam, length: int) -> float:
    return (((5 + length) / 6) if beam.penalty == "gnmt" else length) ** beam.length_penalty


def every_hypothesis(next_log_p: Callable[[list[int]], np.ndarray], beam: Beam, limit: int, vocab: int):
    """All of them, best first."""
    found: list[Hypothesis] = []
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(vocab), repeat=length):
            if END in tokens[:-1] or (length < limit and tokens[-1] != END):
                continue
            log_p = sum(next_log_p(list(tokens[:i]))[token] for i, token in enumerate(tokens))
            found.append((log_p / divisor(beam, length), list(tokens)))
    return sorted(found, reverse=True)


def plain_search(next_log_p: Callable[[list[int]], np.ndarray], beam: Beam, limit: int) -> list[Hypothesis]:
    """Beam search over one row with Python's lists."""
    W = beam.num_beams
    unfinished: list[Hypothesis] = [(0.0, [])]
    finished: list[Hypothesis] = []
    for n in range(1, limit + 1):
        continued = [(s + p, [*tokens, t]) for s, tokens in unfinished for t, p in enumerate(next_log_p(tokens))]
        best = sorted(continued, reverse=True)[: 2 * W]
        ended = [(s / divisor(beam, n), tokens) for s, tokens in best[:W] if tokens[-1] == END or n == limit]
        finished = sorted(finished + ended, reverse=True)[:W]
        unfinished = [(s, tokens) for s, tokens in best if tokens[-1] != END][:W]
        if len(finished) == W and unfinished[0][0] / divisor(beam, limit) <= finished[-1][0]:
            break
    return finished


def written(tokens: np.ndarray) -> list[int]:
    """The tokens of a hypothesis; behind its last one stands nothing but -1."""
    kept = tokens[tokens >= 0].tolist()
    assert tokens.tolist() == kept + [-1] * (len(tokens) - len(kept))
    return kept


def assert_same(tokens: np.ndarray, scores: np.ndarray, expected: list[Hypothesis]):
    assert [written(row) for row in tokens[: len(expected)]] == [tokens for _, tokens in expected]
    np.testing.assert_allclose(scores[: len(expected)], [score for score, _ in expected], rtol=1e-5)


# A model without a network: a token's probability depends on the two before it, and the state is the last but one.


def chain_step(log_p: jax.Array, before_BW: jax.Array, tokens_BW: jax.Array, parents_BW: jax.Array, n: jax.Array):
    before_BW = jnp.take_along_axis(before_BW, parents_BW, axis=1)
    return log_p[jnp.arange(len(log_p))[:, None], before_BW, tokens_BW], tokens_BW


@partial(jax.jit, static_argnames=("beam", "max_tokens"))
def search_chains(log_p: jax.Array, limits: jax.Array, *, beam: Beam, max_tokens: int):
    state = jnp.zeros((len(log_p), beam.num_beams), jnp.int32)
    step = partial(chain_step, log_p)
    return search(step, state, limits, beam=beam, max_tokens=max_tokens, start_id=0, end_id=END)


def chains(rows: int, vocab: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(0).normal(size=(rows, vocab, vocab, vocab)) * sharpness
    return np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))


def of_chain(log_p: np.ndarray) -> Callable[[list[int]], np.ndarray]:
    return lambda tokens: log_p[tuple([0, 0, *tokens][-2:])].astype(np.float64)


@pytest.mark.parametrize("beam", [Beam(64, 0.0), Beam(64, 0.6), Beam(64, 2.0, "power")], ids=str)
def test_a_beam_as_wide_as_the_space_finds_the_best_of_all(beam: Beam):
    log_p = chains(8, 4, 1.0)
    limits = np.array([4, 4, 4, 4, 3, 3, 2, 1], np.int32)
    tokens, scores = search_chains(log_p, limits, beam=beam, max_tokens=4)
    for row, limit in enumerate(limits):
        expected = every_hypothesis(of_chain(log_p[row]), beam, int(limit), 4)
        assert_same(np.asarray(tokens[row]), np.asarray(scores[row]), expected[:10])


@pytest.mark.parametrize("beam", [Beam(1, 1.0), Beam(2, 0.6), Beam(3, 1.0, "power"), Beam(4, 0.0)], ids=str)
@pytest.mark.parametrize("sharpness", [0.7, 2.5])
def test_a_narrow_beam_is_the_plain_one_row_by_row(beam: Beam, sharpness: float):
    """Rows of different limits, done at different times, in one batch."""
    log_p = chains(12, 6, sharpness)
    limits = np.array([8] * 6 + [7, 6, 5, 4, 2, 1], np.int32)
    tokens, scores = search_chains(log_p, limits, beam=beam, max_tokens=8)
    ends = set()
    for row, limit in enumerate(limits):
        expected = plain_search(of_chain(log_p[row]), beam, int(limit))
        assert_same(np.asarray(tokens[row]), np.asarray(scores[row]), expected)
        ends |= {tokens[-1] == END for _, tokens in expected}
    assert ends == {True, False}, "all hypotheses end alike, which proves little"


def test_more_beams_than_hypotheses_leave_the_rest_empty():
    log_p = chains(1, 2, 1.0)
    tokens, scores = search_chains(log_p, np.array([2], np.int32), beam=Beam(6, 0.6), max_tokens=2)
    expected = every_hypothesis(of_chain(log_p[0]), Beam(6, 0.6), 2, 2)
    assert len(expected) == 3
    assert_same(np.asarray(tokens[0]), np.asarray(scores[0]), expected)
    assert np.isneginf(scores[0, 3:]).all()


def test_divisors():
    lengths = jnp.array([1, 7, 13])
    np.testing.assert_allclose(Beam(length_penalty=0.6).divisor(lengths), [1, 2**0.6, 3**0.6], rtol=1e-6)
    np.testing.assert_allclose(Beam(length_penalty=2.0, penalty="power").divisor(lengths), [1, 49, 169], rtol=1e-6)
    np.testing.assert_allclose(Beam(length_penalty=0.0).divisor(lengths), 1)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_beams=0 must be at least 1"):
        Beam(num_beams=0).validate()
    for alpha in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"length_penalty=.* must be at least 0"):
            Beam(length_penalty=alpha).validate()
    with pytest.raises(ValueError, match="penalty=longer must be one of gnmt, power"):
        Beam(penalty="longer").validate()  # pyright: ignore[reportArgumentType]


# Encoder-decoders

VOCAB = 5
SIZES: dict[str, Any] = {"num_layers": 1, "num_decoder_layers": 2, "model_dim": 16, "num_heads": 4, "vocab_size": VOCAB}
CONFIGS = {
    "after, sinusoidal": EncoderDecoderConfig(
        **SIZES, max_length=16, norm_position="after", positions="sinusoidal", init="normal", init_std=0.5
    ),
    "before, relative": EncoderDecoderConfig(
        **SIZES, max_length=16, norm="rms", positions="relative", relative_buckets=4, relative_distance=6, init_std=0.5
    ),
}
SOURCES = np.array([[2, 3, 4, 2, 3], [4, 3, 2, 0, 0]], np.int32)
PRESENT = np.array([[1] * 5, [1] * 3 + [0] * 2], np.int32)


def build(config: EncoderDecoderConfig) -> EncoderDecoder:
    return EncoderDecoder(config, nnx.Rngs(params=jax.random.key(3)))


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return build(CONFIGS[request.param])


def find(model: EncoderDecoder, beam: Beam, limit: int) -> tuple[np.ndarray, np.ndarray]:
    outer, layers = unstack(model)
    limits = np.full(2, limit, np.int32)
    found = beam_search(outer, layers, SOURCES, PRESENT, limits, 0, END, beam=beam, max_tokens=limit)
    return np.asarray(found[0]), np.asarray(found[1])


def test_the_best_of_every_target_there_is(model: EncoderDecoder):
    """The model reads all targets whole; beam search writes them with its cache, and source padding beside."""
    limit, beam = 4, Beam(64, 0.6)
    targets = np.array(list(itertools.product(range(VOCAB), repeat=limit - 1)), np.int32)
    targets = np.concatenate([np.zeros((len(targets), 1), np.int32), targets], axis=1)
    numbers = {tuple(row): i for i, row in enumerate(targets.tolist())}

    @jax.jit
    def read(model: EncoderDecoder, source: jax.Array, present: jax.Array):
        source, present = (jnp.repeat(a[None], len(targets), axis=0) for a in (source, present))
        return jax.nn.log_softmax(model(source, jnp.asarray(targets), source_segments_BM=present))

    log_p = [np.asarray(read(model, *row), np.float64) for row in zip(SOURCES, PRESENT, strict=True)]
    tokens, scores = find(model, beam, limit)
    for row in range(2):

        def next_log_p(prefix: list[int], row: int = row) -> np.ndarray:
            whole = (0, *prefix, *[0] * (limit - 1 - len(prefix)))
            return log_p[row][numbers[whole], len(prefix), :VOCAB]

        assert_same(tokens[row], scores[row], every_hypothesis(next_log_p, beam, limit, VOCAB)[:10])


def test_one_beam_without_a_penalty_is_greedy(model: EncoderDecoder):
    outer, layers = unstack(nnx.clone(model))
    first, one = np.zeros((2, 1), np.int32), np.ones(2, np.int32)
    decoding = start_from_source(outer, layers, SOURCES, PRESENT, first, one, cache_length=12)
    stop, greedily = jnp.array([END], jnp.int32), Sampling(temperature=0)
    _, drawn, log_p = extend(outer, layers, decoding, jax.random.key(0), stop, num_tokens=12, sampling=greedily)
    tokens, scores = find(model, Beam(1, 0.0), 12)
    np.testing.assert_array_equal(tokens[:, 0], drawn)
    np.testing.assert_allclose(scores[:, 0], log_p.sum(-1), rtol=1e-5)


def test_any_mesh_writes_the_same():
    config = CONFIGS["before, relative"]
    weights = declarations(jax.eval_shape(lambda: build(config)))
    skeleton, params = split(build(config))

    def found(shape: tuple[int, ...]):
        mesh = Mesh(np.array(jax.devices()[: math.prod(shape)]).reshape(shape), MESH_AXES)

        def laid(array: Any, axes: tuple[str | None, ...]):
            return jax.device_put(array, NamedSharding(mesh, partition_spec(axes, array.shape, mesh)))

        with jax.set_mesh(mesh):
            sources, present = (laid(array, ("act_batch", "act_length")) for array in (SOURCES, PRESENT))
            model = merge(skeleton, {name: laid(array, weights[name].axes) for name, array in params.items()})
            limits = np.full(2, 8, np.int32)
            return beam_search(*unstack(model), sources, present, limits, 0, END, beam=Beam(), max_tokens=8)

    (tokens, scores), (expected, expected_scores) = found((1, 2, 1, 4)), found((1, 1, 1, 1))
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
