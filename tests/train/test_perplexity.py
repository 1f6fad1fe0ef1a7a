"""Perplexity against a plain computation in float64: the same for every batch size, mesh and packing of windows."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.prepare import prepare_corpus
from data.reading import Reading
from data.shards import Corpus
from data.sources import open_source
from data.tokenizers.base import Tokenizer
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.sentence_piece import train_sentencepiece
from model.decoder import DecoderConfig
from model.parameters import Params, merge
from train import evaluate, perplexity
from train.console import Console
from train.load import load_run
from train.mesh import MeshConfig, make_mesh
from train.objectives.causal_lm import CausalLM, CausalLMConfig
from train.perplexity import PerplexityMeter, Score, unigram_score
from train.state import Blueprint, blueprint

KOREAN = "언어 모델은 다음 토큰의 확률을 배운다. 퍼플렉시티는 그 확률로 계산한다.\n"
ONE_AXIS = MeshConfig()
MIXED_MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def plan() -> Blueprint:
    """A Llama whose fresh weights are large, so that it is sure of what it says."""
    return blueprint(
        DecoderConfig(
            num_layers=2,
            model_dim=32,
            num_heads=4,
            num_kv_heads=2,
            norm="rms",
            activation="swiglu",
            positions="rope",
            use_bias=False,
            tie_embeddings=False,
            init_std=0.3,
            vocab_size=400,
            max_length=32,
        )
    )


@pytest.fixture(scope="module")
def params(plan: Blueprint) -> Params:
    return plan.init(0)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Many short documents, of one character up, and one that is longer than a window many times over."""
    short = [KOREAN[i % 20 : i % 20 + 1 + i % 13] for i in range(40)]
    return [*short[:20], KOREAN * 4, *short[20:]]


@pytest.fixture(scope="module")
def documents(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def corpus(documents: Path) -> Corpus:
    return prepare_corpus(open_source(str(documents)), ByteTokenizer())


def score(
    plan: Blueprint,
    params: Params,
    corpus: Corpus,
    mesh: MeshConfig = ONE_AXIS,
    *,
    window: int,
    stride: int,
    batch_size: int,
    limit: int = 0,
) -> Score:
    objective = CausalLM(CausalLMConfig(z_loss=0.5))  # is learned from, and never reported
    meter = PerplexityMeter(plan, objective, make_mesh(mesh), window=window, stride=stride, batch_size=batch_size)
    return meter.score(params, corpus, ByteTokenizer(), limit=limit)


@pytest.fixture(scope="module")
def plain_nats(plan: Blueprint, params: Params):
    """A function: nats of some documents, window by window, with log-softmax in float64."""
    width = plan.config.max_length
    logits_of = jax.jit(lambda tokens: merge(plan.skeleton, params)(tokens)[0])

    def nats(texts: list[str], window: int, stride: int, tokenizer: Tokenizer) -> np.ndarray:
        """One number a token, in order."""
        costs = []
        for text in texts:
            document = [tokenizer.start_id, *tokenizer.encode(text).tolist()]
            scored = 0
            for begin in range(0, len(document) - 1, stride):
                inputs = document[begin : min(begin + window, len(document) - 1)]
                padded = jnp.array([inputs + [0] * (width - len(inputs))])  # what comes later is not seen
                logits = np.asarray(logits_of(padded), np.float64)[:, : plan.config.vocab_size]
                log_p = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
                log_p -= logits.max(1, keepdims=True)
                end = begin + len(inputs)
                costs += [-log_p[place - begin, document[place + 1]] for place in range(scored, end)]
                scored = end
                if scored == len(document) - 1:
                    break
        return np.array(costs)

    return nats


@pytest.mark.parametrize(
    ("mesh", "batch_size", "window", "stride"),
    [
        pytest.param(ONE_AXIS, 1, 32, 32, marks=pytest.mark.core),
        (ONE_AXIS, 24, 32, 32),
        (ONE_AXIS, 8, 32, 5),
        (MIXED_MESH, 3, 32, 32),
        (MIXED_MESH, 8, 19, 7),
        (MeshConfig(data=1, context=8), 2, 30, 30),  # the rows are longer than the window
    ],
)
def test_it_is_the_plain_computation(plan, params, corpus, texts, plain_nats, mesh, batch_size, window, stride):
    expected = plain_nats(texts, window, stride, ByteTokenizer())
    size = sum(len(text.encode()) for text in texts)
    measured = score(plan, params, corpus, mesh, batch_size=batch_size, window=window, stride=stride)
    assert measured.nats == pytest.approx(expected.sum(), rel=1e-6)
    assert (measured.tokens, measured.bytes) == (size, size)
    assert measured.words == sum(len(text.split()) for text in texts)
    assert measured.nats / measured.tokens > math.log(400), "fresh weights are sure, and wrong"


@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_a_limit_scores_the_first_tokens(plan, params, corpus, texts, plain_nats, limit):
    expected = plain_nats(texts, 32, 32, ByteTokenizer())[:limit]
    measured = score(plan, params, corpus, batch_size=1, window=32, stride=32, limit=limit)
    assert measured.nats == pytest.approx(expected.sum(), rel=1e-6)
    assert (measured.tokens, measured.bytes) == (limit, limit)


@pytest.mark.core
def test_bytes_and_words_of_a_part_of_a_document(plan, params, plain_nats, tmp_path):
    path = tmp_path / "korean.txt"
    path.write_text(KOREAN * 20)
    tokenizer = train_sentencepiece([KOREAN * 20], 320, seed=0)
    corpus = prepare_corpus(open_source(str(path)), tokenizer)
    meter = PerplexityMeter(plan, CausalLM(CausalLMConfig()), make_mesh(ONE_AXIS), window=32, stride=32, batch_size=1)
    whole = meter.score(params, corpus, tokenizer)
    assert (whole.bytes, whole.words) == (len(KOREAN.encode()) * 20, len(KOREAN.split()) * 20)
    assert whole.tokens == len(tokenizer.encode(KOREAN * 20)) < whole.bytes / 3

    part = meter.score(params, corpus, tokenizer, limit=23)
    text = tokenizer.decode(tokenizer.encode(KOREAN * 20)[:23])
    assert (KOREAN * 20).startswith(text)
    assert (part.tokens, part.bytes, part.words) == (23, len(text.encode()), len(text.split()))
    assert part.nats == pytest.approx(plain_nats([KOREAN * 20], 32, 32, tokenizer)[:23].sum(), rel=1e-6)
    figures = part.figures()
    assert figures["bits_per_byte"] == pytest.approx(part.nats / math.log(2) / len(text.encode()))
    assert figures["word_perplexity"] == pytest.approx(math.exp(part.nats / len(text.split())))
    assert figures["perplexity"] == pytest.approx(math.exp(figures["nats_per_token"]))


def test_figures_beyond_any_number_are_infinite():
    figures = Score(nats=1e6, tokens=10, bytes=10, words=0).figures()
    assert (figures["perplexity"], figures["word_perplexity"]) == (math.inf, math.inf)


def test_the_unigram_model_is_counted(tmp_path):
    def corpus(name: str, *lines: str) -> Corpus:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        return prepare_corpus(open_source(str(path)), ByteTokenizer())

    # Counts plus one: a 3, b 3, everything else 1, of 4 + 257; the start tokens count for nothing.
    train, valid = corpus("train", "aab", "b"), corpus("valid", "ab", "c")
    measured = unigram_score([train], valid, 257)
    assert measured.nats == pytest.approx(-math.log(3 / 261 * 3 / 261 * 1 / 261))
    assert (measured.tokens, measured.bytes, measured.words) == (3, 3, 2)
    # Of two corpora, each to its half of the limit, a start token and an a: so a 3, b 1, of 2 + 257.
    assert unigram_score([train, valid], train, 257, limit=4).nats == pytest.approx(-2 * math.log(3 / 259 * 1 / 259))


# Pairs

PAIRS = [("Who?", "I."), ("", KOREAN), (KOREAN[:30], "a longer answer, of some words"), ("x" * 70, "y z"), ("w", "v")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"q": question, "a": answer}) + "\n" for question, answer in PAIRS))
    return prepare_corpus(open_source(str(path), Reading(prompt="{q}", response="{a}")), ByteTokenizer())


@pytest.fixture(scope="module")
def nats_of_answers(plain_nats):
    """A function: nats of the learned tokens of the pairs, one number a token, in order."""

    def nats(window: int, stride: int) -> np.ndarray:
        costs = [
            plain_nats([question + answer], window, stride, ByteTokenizer())[len(question.encode()) :]
            for question, answer in PAIRS
        ]
        return np.concatenate(costs)

    return nats


@pytest.mark.core
@pytest.mark.parametrize(("window", "stride"), [(32, 32), (32, 5), (7, 7)])
def test_given_text_is_read_and_not_scored(plan, params, pairs, nats_of_answers, window, stride):
    expected = nats_of_answers(window, stride)
    measured = score(plan, params, pairs, batch_size=2, window=window, stride=stride)
    assert measured.nats == pytest.approx(expected.sum(), rel=1e-6)
    size = sum(len(answer.encode()) for _, answer in PAIRS)
    assert (measured.tokens, measured.bytes) == (len(expected), size) == (size, size)
    assert measured.words == sum(len(answer.split()) for _, answer in PAIRS)


@pytest.mark.parametrize("limit", [1, 2, 3, 50, 130, 10_000])
def test_a_limit_counts_learned_tokens(plan, params, pairs, nats_of_answers, limit):
    expected = nats_of_answers(32, 32)[:limit]
    measured = score(plan, params, pairs, batch_size=1, window=32, stride=32, limit=limit)
    assert measured.nats == pytest.approx(expected.sum(), rel=1e-6)
    assert (measured.tokens, measured.bytes) == (len(expected), len(expected))
    left, words = limit, 0
    for _, answer in PAIRS:
        words += len(answer.encode()[:left].decode("utf-8", "replace").split())
        left -= min(left, len(answer.encode()))
    assert measured.words == words


@pytest.mark.parametrize("stretch", [1, 7, 1 << 22])
def test_the_unigram_model_learns_and_pays_for_answers_alone(pairs, stretch, monkeypatch):
    monkeypatch.setattr(perplexity, "_STRETCH", stretch)
    learned = np.frombuffer("".join(answer for _, answer in PAIRS).encode(), np.uint8)
    frequency = (np.bincount(learned, minlength=257) + 1) / (len(learned) + 257)
    measured = unigram_score([pairs], pairs, 257)
    assert measured.nats == pytest.approx(-np.log(frequency[learned]).sum())
    assert (measured.tokens, measured.bytes) == (len(learned), len(learned))


@pytest.mark.parametrize(
    ("window", "stride", "sentence"),
    [(33, 33, "window=33 must be at least 1 and at most"), (0, 1, "window=0"), (8, 9, "stride=9"), (8, 0, "stride=0")],
)
def test_windows_that_leave_tokens_out_are_refused(plan, params, corpus, window, stride, sentence):
    with pytest.raises(ValueError, match=sentence):
        score(plan, params, corpus, batch_size=8, window=window, stride=stride)


@pytest.mark.core
def test_the_receipt_says_what_was_measured(uninterrupted, capsys):
    config, result = uninterrupted
    receipt = evaluate.main(evaluate.Arguments(str(config.run_dir)), Console())
    assert set(receipt) >= {
        *("nats_per_token", "perplexity", "bits_per_byte", "word_perplexity", "tokens", "bytes", "words"),
        *("window", "stride", "precision", "definition", "digests"),
    }
    assert set(receipt["digests"]) >= {"text", "tokenizer", "weights"}
    assert (receipt["window"], receipt["stride"], receipt["precision"], receipt["step"]) == (32, 32, "float32", 10)
    # By default the run's own held-out text, which was scored when it ended.
    for name, value in result["evaluation"].items():
        assert receipt[name] == pytest.approx(value, rel=1e-6), name
    json.dumps(receipt)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("bits per byte", receipt["definition"], receipt["digests"]["weights"][:12]))

    earlier = evaluate.main(evaluate.Arguments(f"{config.run_dir}/checkpoints/10", mesh=MIXED_MESH), Console())
    assert earlier["nats_per_token"] == pytest.approx(receipt["nats_per_token"], rel=1e-6)
    assert earlier["digests"] == receipt["digests"]


def test_other_text_and_windows_are_what_is_asked_for(uninterrupted, licence):
    run = load_run(str(uninterrupted[0].run_dir))
    arguments = evaluate.Arguments(
        str(uninterrupted[0].run_dir), evaluate.HeldOutConfig(str(licence)), window=16, stride=8, batch_size=4
    )
    receipt = evaluate.main(arguments, Console())
    corpus = prepare_corpus(open_source(str(licence)), run.tokenizer)
    expected = score(run.plan, run.params, corpus, window=16, stride=8, batch_size=64)
    assert receipt["nats_per_token"] == pytest.approx(expected.nats / expected.tokens, rel=1e-6)
    assert receipt["tokens"] == corpus.num_tokens - corpus.num_documents
    assert receipt["documents"] == corpus.num_documents
    assert receipt["digests"]["text"] == corpus.digest


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "", "no text"),
        ("a.jsonl", '{"text": ""}\n', "no text"),
        ("b.csv", "a,b", "no column 'text'; the columns there are 'a', 'b'"),
        ("b.pdf", "a", "suffix that is not read"),
    ],
)
def test_text_that_is_none_is_refused(uninterrupted, tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        evaluate.main(
            evaluate.Arguments(str(uninterrupted[0].run_dir), evaluate.HeldOutConfig(str(tmp_path / name))), Console()
        )


def test_chunks_of_the_loss_need_not_divide_a_window(plan, params, corpus, texts, plain_nats):
    meter = PerplexityMeter(
        plan, CausalLM(CausalLMConfig(loss_chunks=8)), make_mesh(ONE_AXIS), window=19, stride=19, batch_size=8
    )
    expected = plain_nats(texts, 19, 19, ByteTokenizer())
    assert meter.score(params, corpus, ByteTokenizer()).nats == pytest.approx(expected.sum(), rel=1e-6)
