"""Recurrent encoder-decoders: torch's numbers, five visible steps, and one result whichever way a target is decoded."""

import dataclasses
import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.beam import Beam
from model.parameters import declarations, merge, split
from model.recurrent import (
    CELLS,
    PRESETS,
    Recurrent,
    RecurrentConfig,
    beam_search,
    cells,
    count_parameters,
    matrix_parameters,
    train_flops_per_row,
)
from train.mesh import MeshConfig, batch_sharding, make_mesh, parameter_shardings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = RecurrentConfig(num_layers=2, model_dim=8, embedding_dim=6, vocab_size=19, source_vocab_size=23, max_length=12)
SOURCE_BM = np.random.default_rng(0).integers(0, 23, (3, 7), np.int32)
TARGET_BL = np.random.default_rng(1).integers(0, 19, (3, 6), np.int32)
SEGMENTS_BM = (np.arange(7)[None] < np.array([7, 3, 5])[:, None]).astype(np.int32)
SEGMENTED = {"source_segments_BM": SEGMENTS_BM}

# Every cell without attention, and every score without and with feeding.
VARIANTS = {
    f"{cell}-{score}{'-fed' if fed else ''}": dataclasses.replace(SMALL, cell=cell, attention=score, input_feeding=fed)
    for cell, score, fed in [
        ("rnn", "none", False),
        ("lstm", "none", False),
        ("gru", "none", False),
        ("lstm", "dot", False),
        ("gru", "general", False),
        ("rnn", "concat", False),
        ("lstm", "location", False),
        ("rnn", "dot", True),
        ("lstm", "general", True),
        ("gru", "concat", True),
        ("lstm", "location", True),
    ]
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
attentive = pytest.mark.parametrize(
    "config", [c for c in VARIANTS.values() if c.attention != "none"], ids=[n for n in VARIANTS if "none" not in n]
)


def model_of(config: RecurrentConfig) -> Any:
    """A model whose every weight matters, biases too."""
    skeleton, params = split(Recurrent(config, nnx.Rngs(params=jax.random.key(0))))
    random = np.random.default_rng(0)
    return merge(skeleton, {n: p + 0.3 * random.normal(size=p.shape).astype(np.float32) for n, p in params.items()})


logits_of = jax.jit(Recurrent.__call__)
hidden_of = jax.jit(Recurrent.hidden, static_argnames="capture")
encoded_by = jax.jit(Recurrent.encode)
decoded_by = jax.jit(Recurrent.decode, static_argnames="capture")


def assert_near(actual: Any, expected: Any, what: str = "") -> None:
    """Equal to 1e-5 of the largest number expected."""
    expected = np.asarray(expected, np.float32)
    assert np.abs(np.asarray(actual) - expected).max() <= 1e-5 * np.abs(expected).max(), what


# Parity with torch


def golden(file: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a golden file, by model."""
    models: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN / f"recurrent_{file}.npz") as arrays:
        for key, array in arrays.items():
            name, _, rest = key.partition("/")
            models.setdefault(name, {})[rest] = array
    return models


def below(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def from_torch(theirs: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The weights of our layers by name, from those of one of torch's modules, whose two biases are added."""
    ours: dict[str, np.ndarray] = {}
    for name, array in theirs.items():
        layer, gates = name[-1], array.reshape(CELLS[kind].gates, -1, *array.shape[1:])
        if name.startswith("weight"):
            ours[f"{layer}.{'input' if 'ih' in name else 'hidden'}"] = np.moveaxis(gates, -1, 0)
            continue
        if name.startswith("bias_hh") and kind == "gru":
            ours[f"{layer}.candidate_bias"] = gates[2]
            gates = gates * np.array([[1], [1], [0]], np.float32)
        ours[f"{layer}.bias"] = ours.get(f"{layer}.bias", 0) + gates
    return ours


def to_torch(ours: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The way back: torch's second biases are zero but for GRU's candidate."""
    theirs = {}
    for layer in range(2):
        for name, weight in (("input", "weight_ih"), ("hidden", "weight_hh")):
            theirs[f"{weight}_l{layer}"] = np.moveaxis(ours[f"{layer}.{name}"], 0, -1).reshape(
                -1, len(ours[f"{layer}.{name}"])
            )
        bias = ours[f"{layer}.bias"]
        second = np.zeros_like(bias)
        if kind == "gru":
            second[2] = ours[f"{layer}.candidate_bias"]
        theirs |= {f"bias_ih_l{layer}": bias.reshape(-1), f"bias_hh_l{layer}": second.reshape(-1)}
    return theirs


def cells_config(kind: Any) -> RecurrentConfig:
    return RecurrentConfig(cell=kind, num_layers=2, model_dim=6, embedding_dim=5, vocab_size=9, max_length=9)


def run_cells(kind: str, params: dict[str, Any], inputs_BLE: Any, lengths_B: np.ndarray):
    """Outputs [B, L, D], zero where a sequence has ended, and last states [arrays, layers, B, D]."""
    config = cells_config(kind)
    skeleton = split(cells(config, nnx.Rngs(params=0)))[0]
    valid_BL = np.arange(inputs_BLE.shape[1])[None] < lengths_B[:, None]
    x_LBE, last = jnp.moveaxis(jnp.asarray(inputs_BLE), 0, 1), []
    begins_LB = np.zeros(x_LBE.shape[:2], bool)
    begins_LB[0] = True
    for cell in merge(skeleton, params):
        states = cell.run(x_LBE, jnp.asarray(begins_LB))
        x_LBE = states[0]
        last.append(jnp.stack([a_LBD[lengths_B - 1, np.arange(len(lengths_B))] for a_LBD in states]))
    return jnp.where(valid_BL[..., None], jnp.moveaxis(x_LBE, 0, 1), 0), jnp.stack(last, 1)


@pytest.mark.core
@pytest.mark.parametrize("kind", CELLS)
def test_cells_compute_what_torch_computes(kind: str):
    theirs = golden("cells")[kind]

    def loss(params, inputs_BLE):
        outputs_BLD, last = run_cells(kind, params, inputs_BLE, theirs["lengths"])
        return jnp.sin(outputs_BLD).sum() + jnp.sin(2 * last).sum(), (outputs_BLD, last)

    params = from_torch(below("weight/", theirs), kind)
    gradients, (outputs_BLD, last) = jax.jit(jax.grad(loss, has_aux=True))(params, theirs["inputs"])
    assert_near(outputs_BLD, theirs["outputs"])
    assert_near(last, theirs["last"])
    expected = below("gradient/", theirs)
    # Each of two biases that are added has the gradient of their sum; GRU's candidate alone has two of its own.
    second = [expected.pop(f"bias_hh_l{layer}") for layer in range(2)]
    for name, gradient in from_torch(expected, kind).items():
        assert_near(gradients[name], gradient, name)
    if kind == "gru":
        for layer in range(2):
            assert_near(gradients[f"{layer}.candidate_bias"], second[layer][-6:])


@pytest.mark.parametrize("kind", CELLS)
def test_torch_computes_the_same_with_our_weights(kind: str):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    born = split(cells(cells_config(kind), nnx.Rngs(params=0)))[1]
    params = {name: random.normal(size=p.shape).astype(np.float32) * 0.5 for name, p in born.items()}
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](5, 6, 2, batch_first=True)
    module.load_state_dict({name: torch.tensor(weight) for name, weight in to_torch(params, kind).items()})
    inputs_BLE = random.normal(size=(4, 11, 5)).astype(np.float32)
    lengths_B = np.array([11, 1, 8, 4])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(inputs_BLE), torch.tensor(lengths_B), batch_first=True, enforce_sorted=False
    )
    with torch.no_grad():
        packed_outputs, expected_last = module(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_outputs, batch_first=True)
    outputs_BLD, last = run_cells(kind, params, inputs_BLE, lengths_B)
    assert_near(outputs_BLD, expected)
    assert_near(last, torch.stack(expected_last if kind == "lstm" else (expected_last,)))


def translator(theirs: dict[str, np.ndarray], cell: str, score: str) -> dict[str, np.ndarray]:
    """The weights of a whole model by our names, from the golden file's."""
    names = {"source": "source_embedding.table", "target": "target_embedding.table", "head": "head.table"}
    ours = {name: theirs[f"{module}.weight"] for module, name in names.items() if f"{module}.weight" in theirs}
    for side in ("encoder", "decoder"):
        layers = from_torch(below(f"{side}.", theirs), cell)
        if side == "decoder" and len(layers["0.input"]) > 5:  # torch's first layer reads [embedding; combination]
            layers["0.input"], ours["feed"] = np.split(layers["0.input"], [5])
        ours |= {f"{side}.{name}": array for name, array in layers.items()}
    if "w_combine.weight" in theirs:
        ours["attention.combine"] = theirs["w_combine.weight"].T
    if "w_score.weight" in theirs:  # theirs multiplies the encoder's states in a general score, ours the decoder's
        weight = theirs["w_score.weight"]
        ours["attention.weight"] = weight if score == "general" else weight.T
    if "v_score" in theirs:
        ours["attention.vector"] = theirs["v_score"]
    return ours


@pytest.mark.core
@pytest.mark.parametrize("name", golden("translation"))
def test_whole_models_compute_what_torch_computes(name: str):
    theirs = golden("translation")[name]
    cell, score, *fed = name.split("_")
    fields: dict[str, Any] = {"cell": cell, "attention": score, "input_feeding": bool(fed)}
    config = dataclasses.replace(cells_config(cell), vocab_size=11, source_vocab_size=13, vocab_multiple=1, **fields)
    skeleton, born = split(Recurrent(config, nnx.Rngs(params=0)))
    params = translator(below("weight/", theirs), cell, score)
    assert {name: p.shape for name, p in params.items()} == {name: p.shape for name, p in born.items()}
    source_BM, target_BL = (theirs[key].astype(np.int32) for key in ("source", "target"))
    segments_BM = (np.arange(source_BM.shape[1])[None] < theirs["lengths"][:, None]).astype(np.int32)
    segments = {"source_segments_BM": segments_BM, "target_segments_BL": np.ones_like(target_BL)}

    def loss(params):
        logits_BLV = merge(skeleton, params)(source_BM, target_BL, **segments)
        log_p = jax.nn.log_softmax(logits_BLV[:, :-1])
        return -jnp.take_along_axis(log_p, target_BL[:, 1:, None], axis=-1).mean(), logits_BLV

    (value, logits_BLV), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert_near(logits_BLV, theirs["logits"])
    assert_near(value, theirs["loss"])
    expected = translator(below("gradient/", theirs), cell, score)
    assert len(expected) >= 3
    for weight, gradient in expected.items():
        assert_near(gradients[weight], gradient, weight)


# The five steps


@attentive
def test_the_five_steps_are_visible_and_follow_from_each_other(config: RecurrentConfig):
    model = model_of(config)
    names = ("encoder_states", "attention_scores", "attention_probabilities", "context_vector", "combination")
    hidden_BLD, steps = hidden_of(model, SOURCE_BM, TARGET_BL, **SEGMENTED, capture=names)
    assert {name: steps[name].shape for name in names} == {
        "encoder_states": (3, 7, 8),
        "attention_scores": (3, 6, 7),
        "attention_probabilities": (3, 6, 7),
        "context_vector": (3, 6, 8),
        "combination": (3, 6, 8),
    }
    padding_BLM = np.broadcast_to(SEGMENTS_BM[:, None] == 0, (3, 6, 7))
    p_BLM = steps["attention_probabilities"]
    assert (p_BLM[padding_BLM] == 0).all()
    assert (p_BLM[~padding_BLM] > 0).all()
    exp_BLM = np.where(padding_BLM, 0, np.exp(np.asarray(steps["attention_scores"])))
    assert_near(p_BLM, exp_BLM / exp_BLM.sum(-1, keepdims=True))
    assert_near(steps["context_vector"], np.einsum("BLM,BMD->BLD", p_BLM, steps["encoder_states"]))
    np.testing.assert_array_equal(steps["combination"], hidden_BLD)
    _, fewer = hidden_of(model, SOURCE_BM, TARGET_BL, **SEGMENTED, capture=("context_vector",))
    assert fewer.keys() == {"context_vector"}


def test_without_attention_the_decoder_is_given_the_last_state_and_nothing_else():
    model = model_of(SMALL)
    encoded = encoded_by(model, SOURCE_BM, segments_BM=SEGMENTS_BM)
    expected, steps = decoded_by(model, TARGET_BL, encoded, capture=("attention_scores", "combination"))
    nothing = dataclasses.replace(encoded, states_BMD=encoded.states_BMD * jnp.nan, keys_BMD=encoded.keys_BMD * jnp.nan)
    np.testing.assert_array_equal(decoded_by(model, TARGET_BL, nothing)[0], expected)
    assert steps == {}
    other = dataclasses.replace(encoded, layers=jax.tree.map(jnp.zeros_like, encoded.layers))
    assert np.abs(decoded_by(model, TARGET_BL, other)[0] - expected).max() > 0.01


# One result, whichever way


@pytest.mark.core
@every_variant
def test_decoding_step_by_step_is_decoding_the_whole_target(config: RecurrentConfig):
    model = model_of(config)
    encoded = encoded_by(model, SOURCE_BM, segments_BM=SEGMENTS_BM)
    expected_BLD, _ = decoded_by(model, TARGET_BL, encoded)
    state, step = model.start(encoded), jax.jit(model.step)
    for place in range(TARGET_BL.shape[1]):
        y_BD, state = step(TARGET_BL[:, place], state, encoded)
        assert_near(y_BD, expected_BLD[:, place], f"place {place}")


@pytest.mark.parametrize("score", ["dot", "location"])
def test_feeding_nothing_back_is_not_feeding(score: Any):
    fed = model_of(dataclasses.replace(SMALL, attention=score, input_feeding=True))
    skeleton, _ = split(model_of(dataclasses.replace(SMALL, attention=score)))
    params = split(fed)[1]
    unfed = merge(skeleton, {name: params[name] for name in skeleton.names})
    expected = logits_of(unfed, SOURCE_BM, TARGET_BL, **SEGMENTED)
    zeroed = merge(split(fed)[0], params | {"feed": jnp.zeros_like(params["feed"])})
    assert_near(logits_of(zeroed, SOURCE_BM, TARGET_BL, **SEGMENTED)[..., :19], expected[..., :19])


@every_variant
def test_neither_padding_nor_its_length_changes_anything(config: RecurrentConfig):
    model = model_of(config)
    alone = logits_of(model, SOURCE_BM[1:2, :3], TARGET_BL[1:2])
    target_segments_BL = np.ones_like(TARGET_BL)
    beside_longer = logits_of(model, SOURCE_BM, TARGET_BL, **SEGMENTED, target_segments_BL=target_segments_BL)
    assert_near(beside_longer[1:2, :, :19], alone[..., :19])


def test_a_source_read_from_its_end_is_the_reversed_source():
    backwards = model_of(dataclasses.replace(SMALL, attention="general", reverse_source=True))
    forwards = merge(split(model_of(dataclasses.replace(SMALL, attention="general")))[0], split(backwards)[1])
    turned = SOURCE_BM.copy()
    for row, length in enumerate(SEGMENTS_BM.sum(1)):
        turned[row, :length] = SOURCE_BM[row, :length][::-1]
    assert_near(
        logits_of(backwards, SOURCE_BM, TARGET_BL, **SEGMENTED)[..., :19],
        logits_of(forwards, turned, TARGET_BL, **SEGMENTED)[..., :19],
    )


@every_variant
def test_no_token_sees_a_later_one(config: RecurrentConfig):
    model = model_of(config)
    encoded = encoded_by(model, SOURCE_BM, segments_BM=SEGMENTS_BM)
    changed = TARGET_BL.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 19
    differs_BL = np.abs(decoded_by(model, TARGET_BL, encoded)[0] - decoded_by(model, changed, encoded)[0]).max(-1) > 0
    np.testing.assert_array_equal(differs_BL, np.broadcast_to(np.arange(6) >= 3, (3, 6)))


# Rows of pairs, each a source and a target of so many tokens; and each of the pairs in a row of its own.
PACKED = [[(3, 2), (4, 3), (2, 3)], [(5, 4), (1, 1)], [], [], []]
ALONE = [[pair] for pairs in PACKED for pair in pairs]


def laid_out(rows: list[list[tuple[int, int]]]) -> dict[str, np.ndarray]:
    """The arguments of a model for these rows. No token comes twice on a side."""
    arguments = {}
    for side, (name, vocab_size) in enumerate([("source", 23), ("target", 19)]):
        tokens, segments = np.zeros((5, 9), np.int32), np.zeros((5, 9), np.int32)
        upcoming = iter(np.random.default_rng(side).permutation(vocab_size))
        for row, pairs in enumerate(rows):
            begin = 0
            for segment, pair in enumerate(pairs, 1):
                places = slice(begin, begin + pair[side])
                tokens[row, places] = list(itertools.islice(upcoming, pair[side]))
                segments[row, places] = segment
                begin += pair[side]
        letters = "BM" if name == "source" else "BL"
        arguments |= {f"{name}_{letters}": tokens, f"{name}_segments_{letters}": segments}
    return arguments


@pytest.mark.core
@pytest.mark.parametrize("name", ["gru-none", "lstm-none", "rnn-concat", "lstm-location", "gru-concat-fed"])
def test_packed_pairs_are_computed_as_if_alone_and_nothing_leaks(name: str):
    config = dataclasses.replace(VARIANTS[name], reverse_source=name in ("gru-none", "rnn-concat"))
    skeleton, params = split(model_of(config))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params, arguments, scored_BL):
        logits_BLV = merge(skeleton, params)(**arguments)[..., :19]
        return (jnp.sin(logits_BLV) * scored_BL[..., None]).sum(), logits_BLV

    packed, alone = laid_out(PACKED), laid_out(ALONE)
    scored_BL, alone_scored_BL = (arguments["target_segments_BL"] > 0 for arguments in (packed, alone))
    gradients, logits_BLV = gradient(params, packed, scored_BL)
    expected, expected_BLV = gradient(params, alone, alone_scored_BL)
    assert_near(logits_BLV[scored_BL], expected_BLV[alone_scored_BL])
    for weight, g in expected.items():
        assert_near(gradients[weight], g, weight)
    for segment in (1, 2, 3):
        gradients, _ = gradient(params, packed, packed["target_segments_BL"] == segment)
        for side, letters in (("source", "BM"), ("target", "BL")):
            read = np.flatnonzero(np.any(gradients[f"{side}_embedding.table"], axis=-1))
            own = packed[f"{side}_{letters}"][packed[f"{side}_segments_{letters}"] == segment]
            assert set(read) == set(own), side


def test_location_scores_are_those_of_the_positions_given():
    model, rows = model_of(VARIANTS["lstm-location"]), laid_out(PACKED)
    positions_BM = np.zeros((5, 9), np.int32)
    positions_BM[0], positions_BM[1, :6] = [0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 0]
    scored_BL = rows["target_segments_BL"] > 0
    default_BLV, given_BLV, others_BLV = (
        logits_of(model, **rows, source_positions_BM=positions)[scored_BL]
        for positions in (None, positions_BM, positions_BM[:, ::-1])
    )
    assert_near(given_BLV, default_BLV)
    assert np.abs(others_BLV - default_BLV)[:, :19].max() > 1e-3


@pytest.mark.parametrize("name", ["gru-none", "lstm-dot", "lstm-general-fed"])
def test_dropout_is_for_training_and_keeps_its_rate(name: str):
    model = model_of(dataclasses.replace(VARIANTS[name], dropout=0.25))
    dropped, _ = hidden_of(model, SOURCE_BM, TARGET_BL, **SEGMENTED, key=jax.random.key(1))
    again, _ = hidden_of(model, SOURCE_BM, TARGET_BL, **SEGMENTED, key=jax.random.key(1))
    whole, _ = hidden_of(model, SOURCE_BM, TARGET_BL, **SEGMENTED)
    np.testing.assert_array_equal(dropped, again)
    assert 0.1 < (np.asarray(dropped) == 0).mean() < 0.4
    assert not (np.asarray(whole) == 0).any()


def test_bfloat16_parameters_compute_in_bfloat16_near_float32():
    config = dataclasses.replace(SMALL, attention="concat", input_feeding=True)
    skeleton, params = split(model_of(config))
    half = merge(skeleton, {name: p.astype(jnp.bfloat16) for name, p in params.items()})
    logits = logits_of(half, SOURCE_BM, TARGET_BL, **SEGMENTED)[..., :19]
    assert logits.dtype == jnp.bfloat16
    expected = logits_of(merge(skeleton, params), SOURCE_BM, TARGET_BL, **SEGMENTED)[..., :19]
    assert np.abs(logits.astype(jnp.float32) - expected).max() < 0.05 * np.abs(expected).max()
    states = [a for layer in encoded_by(half, SOURCE_BM).layers for a in layer]
    assert {a.dtype for a in states} == {jnp.dtype(jnp.float32)}


def test_gradients_of_bfloat16_parameters_are_near_those_of_float32():
    config = dataclasses.replace(SMALL, cell="gru", num_layers=1, attention="dot", input_feeding=True)
    skeleton, params = split(model_of(config))
    source, target = np.tile(SOURCE_BM, (16, 1)), np.tile(TARGET_BL, (16, 1))

    def loss(params, dtype):
        logits = merge(skeleton, {name: p.astype(dtype) for name, p in params.items()})(source, target)
        return jnp.sin(logits[..., :19].astype(jnp.float32)).sum()

    half, whole = (jax.jit(jax.grad(loss), static_argnums=1)(params, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    for name, expected in whole.items():
        assert np.abs(half[name] - expected).max() <= 0.05 * np.abs(expected).max(), name


# Decoding


def test_one_beam_is_the_greedy_choice_and_more_find_the_best_of_all_translations():
    config = dataclasses.replace(SMALL, vocab_size=5, attention="general", input_feeding=True, vocab_multiple=8)
    model, START, END, LIMIT = model_of(config), 1, 2, 3
    every = np.array(list(itertools.product(range(5), repeat=LIMIT)))
    counted = np.cumsum(np.cumsum(every == END, axis=1), axis=1) <= 1  # up to and including the first end
    given_every = np.concatenate([np.full((len(every), 1), START), every[:, :-1]], axis=1)

    def searched(num_beams: int):
        return beam_search(
            model, SOURCE_BM, SEGMENTS_BM, np.full(3, LIMIT), START, END, beam=Beam(num_beams, 0.0), max_tokens=LIMIT
        )

    greedy = searched(1)[0][:, 0]
    for row in range(3):
        encoded = jax.tree.map(
            lambda a, row=row: a[row : row + 1], encoded_by(model, SOURCE_BM, segments_BM=SEGMENTS_BM)
        )
        given = np.concatenate([[START], np.maximum(greedy[row, :-1], 0)])[None]
        logits_LV = model.logits(decoded_by(model, given, encoded)[0])[0]
        tokens = np.asarray(logits_LV.argmax(-1))
        length = np.flatnonzero(np.append(tokens == END, True))[0] + 1
        np.testing.assert_array_equal(greedy[row, :length], tokens[:length])
        assert (greedy[row, length:] == -1).all()

        many = jax.tree.map(lambda a: jnp.repeat(a, len(every), axis=0), encoded)
        log_p = jax.nn.log_softmax(model.logits(decoded_by(model, given_every, many)[0])[..., :5])
        log_p = np.take_along_axis(np.asarray(log_p), every[..., None], axis=-1)[..., 0]
        tokens, scores = (found[row, 0] for found in searched(5**LIMIT // 2))
        best = (log_p * counted).sum(1).argmax()
        np.testing.assert_array_equal(tokens, np.where(counted[best], every[best], -1))
        assert_near(scores, (log_p * counted).sum(1)[best])


# Configurations


def test_parameters_are_as_published_and_as_declared():
    assert count_parameters(PRESETS["luong"]) == 216_032_000
    assert count_parameters(PRESETS["luong-feeding"]) == 220_032_000
    shapes = [
        *VARIANTS.values(),
        *PRESETS.values(),
        dataclasses.replace(SMALL, num_layers=1, source_vocab_size=None, share_embeddings=True),
        dataclasses.replace(SMALL, embedding_dim=None, tie_embeddings=True, attention="concat", input_feeding=True),
    ]
    for config in shapes:
        config.validate()
        assert count_parameters(config.resolved()) == count_parameters(config)
        declared = declarations(jax.eval_shape(lambda config=config: Recurrent(config, nnx.Rngs(params=0))))
        total = sum(math.prod(d.shape) for d in declared.values())
        for name, d in declared.items():
            rows = config.source_vocab if name == "source_embedding.table" else config.vocab_size
            total -= (d.shape[0] - rows) * d.shape[1] if "vocab" in d.axes else 0
        assert count_parameters(config) == total, config
        looked_up = {"embedding.table", "source_embedding.table", "target_embedding.table"}
        multiplied = sum(
            math.prod(d.shape) for name, d in declared.items() if d.kind == "matrix" and "vocab" not in d.axes
        )
        assert sum(matrix_parameters(config)) == multiplied + config.vocab_size * config.model_dim
        assert {name for name, d in declared.items() if d.kind == "embedding"} <= looked_up


def test_small_presets_have_one_budget_with_and_without_attention():
    counts = {name: count_parameters(config) for name, config in PRESETS.items() if name.endswith("-tiny")}
    assert counts == {
        "rnn-tiny": 2_588_080,
        "rnn-attention-tiny": 2_585_940,
        "lstm-tiny": 2_585_856,
        "lstm-attention-tiny": 2_583_984,
        "gru-tiny": 2_580_480,
        "gru-attention-tiny": 2_599_168,
    }
    assert max(abs(count / 2_598_912 - 1) for count in counts.values()) < 0.01  # transformer-tiny's


def test_operations_of_a_row():
    source, target = matrix_parameters(PRESETS["luong"])
    assert source == 4 * 4 * 2_000_000
    assert target == source + 2_000_000 + 50_000_000
    assert train_flops_per_row(PRESETS["luong"], 30, 20) == 6 * (30 * source + 20 * target + 2 * 1000 * 30 * 20)
    # A location's score is as much work as a dot product's, however many more places the model has weights for.
    dot, location = (dataclasses.replace(SMALL, attention=score) for score in ("dot", "location"))
    assert train_flops_per_row(location, 7, 6) == train_flops_per_row(dot, 7, 6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ({"embedding_dim": 0}, "model.embedding_dim=0 must be at least 1"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be at least 0 and less than 1"),
        ({"input_feeding": True}, "input_feeding feeds back what attention makes; set model.attention, or turn it off"),
        ({"share_embeddings": True}, "source_vocab_size=23 is not vocab_size=19; make them equal"),
        ({"tie_embeddings": True}, "embedding_dim=6 to be model_dim=8; make them equal"),
    ],
)
def test_what_no_model_can_have_is_refused(change: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SMALL, **change).validate()


def test_a_source_longer_than_the_places_that_are_scored_is_refused():
    model = model_of(dataclasses.replace(SMALL, attention="location", max_length=6))
    with pytest.raises(ValueError, match="a source of 7 tokens is longer than max_length=6"):
        model(SOURCE_BM, TARGET_BL)


def test_an_example_is_what_a_model_takes():
    for config in (SMALL, dataclasses.replace(SMALL, max_length=1)):
        assert np.isfinite(logits_of(model_of(config), **Recurrent.example(config))).all()


# Meshes

MESHES = {
    "fsdp8": MeshConfig(data=1, fsdp=8),
    "fsdp2_tensor2_data2": MeshConfig(data=2, fsdp=2, tensor=2),
    "context2_tensor4": MeshConfig(data=1, context=2, tensor=4),
}


@pytest.mark.parametrize("mesh_config", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("name", ["lstm-dot", "gru-concat-fed"])
def test_any_mesh_computes_the_same(name: str, mesh_config: MeshConfig):
    config = dataclasses.replace(VARIANTS[name], embedding_dim=None, dropout=0.1)
    skeleton, params = split(model_of(config))
    inputs = {"source": np.resize(SOURCE_BM, (8, 8)), "target": np.resize(TARGET_BL, (8, 8))}
    inputs["segments"] = 1 + (np.arange(8)[None] >= np.arange(1, 9)[:, None]).astype(np.int32)

    def loss(params, inputs):
        model = merge(skeleton, params)
        segments = {"source_segments_BM": inputs["segments"], "target_segments_BL": inputs["segments"]}
        y_BLD, _ = model.hidden(inputs["source"], inputs["target"], **segments, key=jax.random.key(0))
        return jnp.square(jnp.sin(model.logits(y_BLD)[..., :19])).mean()

    gradient = jax.jit(jax.value_and_grad(loss))
    expected = gradient(params, inputs)
    mesh = make_mesh(mesh_config)
    shardings = parameter_shardings(declarations(merge(skeleton, params)), mesh)
    with jax.set_mesh(mesh):
        placed = {n: jax.device_put(a, batch_sharding(mesh, a.shape)) for n, a in inputs.items()}
        value, gradients = gradient({n: jax.device_put(p, shardings[n]) for n, p in params.items()}, placed)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    for weight, g in gradients.items():
        assert_near(g, expected[1][weight], weight)
