"""What a model writes: token by token what the plain loop draws, and as text what people can read as it comes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.images import ImagesConfig
from data.tokenizers.base import Tokenizer
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.sentence_piece import train_sentencepiece
from model.beam import Beam
from model.decode import Sampling
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.parameters import merge
from model.recurrent import RecurrentConfig
from model.vision import VisionConfig
from train.console import Console
from train.generate import Arguments, Continuation, Writer
from train.generate import main as generate
from train.load import LoadedRun, load_run
from train.mesh import MeshConfig, make_mesh
from train.objectives.denoising import DenoisingConfig
from train.objectives.masked_lm import MaskedLMConfig
from train.state import blueprint
from train.translate import Translator

GREEDY = Sampling(temperature=0)
WARM = Sampling(temperature=1.2)


@pytest.fixture(scope="module")
def run(uninterrupted) -> LoadedRun:
    return load_run(uninterrupted[0].run_dir)


@pytest.fixture(scope="module")
def writer(run: LoadedRun) -> Writer:
    return Writer(run.plan, run.params, run.tokenizer, run.mesh)


def written(writer: Writer, prompts, max_tokens=None, sampling=GREEDY, seed=0, stop=()) -> list[Continuation]:
    """The continuations, after the check that the first one's pieces are its text."""
    pieces, states = zip(*writer.write(prompts, max_tokens, sampling, seed, stop), strict=True)
    assert "".join(pieces) == states[-1][0].text
    return states[-1]


@pytest.fixture(scope="module")
def plain_loop(run: LoadedRun):
    """A function: token after token the most probable, by the whole model each time, and their log-probabilities."""
    logits_of = jax.jit(lambda tokens: merge(run.plan.skeleton, run.params)(tokens)[0])

    def loop(prompt: str, count: int) -> tuple[list[int], list[float]]:
        tokens = [run.tokenizer.start_id, *run.tokenizer.encode(prompt).tolist()]
        log_probabilities = []
        for place in range(len(tokens) - 1, len(tokens) - 1 + count):
            logits = logits_of(jnp.array([tokens + [0] * (32 - len(tokens))]))[place, :257]
            tokens.append(int(logits.argmax()))
            log_probabilities.append(float(jax.nn.log_softmax(logits)[tokens[-1]]))
        return tokens[-count:], log_probabilities

    return loop


@pytest.mark.core
def test_greedy_is_the_plain_loop(writer, run, plain_loop):
    prompts = ["", "the License", "You"]
    longest = 32 - len("the License")
    continuations = written(writer, prompts, longest)
    for prompt, continuation in zip(prompts, continuations, strict=True):
        tokens, log_probabilities = plain_loop(prompt, longest)
        assert continuation.tokens == tokens
        np.testing.assert_allclose(continuation.log_probabilities, log_probabilities, atol=1e-4)
        assert continuation.text == run.tokenizer.decode(tokens)
        assert continuation.prompt == prompt


def test_any_mesh_writes_the_same(writer, uninterrupted):
    run = load_run(uninterrupted[0].run_dir, MeshConfig(data=2, fsdp=2, tensor=2))
    other = Writer(run.plan, run.params, run.tokenizer, run.mesh)
    prompts = ["the ", "License"]
    assert [c.tokens for c in written(other, prompts, 20)] == [c.tokens for c in written(writer, prompts, 20)]


def test_a_length_that_devices_do_not_share_evenly_is_no_matter():
    plan = blueprint(DecoderConfig(num_layers=1, model_dim=32, num_heads=4, vocab_size=257, max_length=30))
    params, prompt = plan.init(0), "a prompt of 23 letters."
    one, four = (
        written(Writer(plan, params, ByteTokenizer(), make_mesh(mesh)), [prompt], 4)[0].log_probabilities
        for mesh in (MeshConfig(), MeshConfig(data=2, context=4))
    )
    np.testing.assert_allclose(four, one, rtol=1e-5)


def test_the_seed_and_the_place_decide_and_not_the_company(writer):
    alone = written(writer, ["the "], 20, WARM, seed=3)[0]
    assert written(writer, ["the "], 20, WARM, seed=3)[0] == alone
    assert written(writer, ["the "], 20, WARM, seed=4)[0].tokens != alone.tokens
    both, others = (written(writer, ["the ", second], 20, WARM, seed=3) for second in ("You", "grant of"))
    assert both[0] == others[0] == alone
    assert both[1].tokens != others[1].tokens
    twice = written(writer, ["the ", "the "], 20, WARM, seed=3)
    assert twice[0].tokens != twice[1].tokens


def test_it_ends_at_the_end_token(run, plain_loop):
    tokens, _ = plain_loop("", 20)
    tokenizer = ByteTokenizer()
    tokenizer.end_id = tokens[9]  # as if the model knew that byte as the end
    ends = tokens.index(tokens[9])
    continuation = written(Writer(run.plan, run.params, tokenizer, run.mesh), [""], 20)[0]
    assert continuation.tokens == tokens[:ends]
    assert len(continuation.log_probabilities) == ends


@pytest.mark.parametrize(
    ("max_tokens", "sentence"),
    [
        (0, "max_tokens=0 must be between 1 and 29, what the model's max_length=32 leaves; try 29"),
        (30, "max_tokens=30 must be between 1 and 29"),
        (-1, "max_tokens=-1 must be"),
    ],
)
def test_more_than_there_is_room_for_is_refused(writer, max_tokens, sentence):
    with pytest.raises(ValueError, match=sentence):
        written(writer, ["a", "abc"], max_tokens)
    assert len(written(writer, ["abc"])[0].tokens) == 29, "by default what there is room for"


@pytest.mark.parametrize(
    ("prompts", "sampling", "sentence"),
    [
        (["x" * 32], GREEDY, "the prompt has 33 tokens, more than the model's max_length=32; shorten it"),
        (["x"], Sampling(temperature=-1), "temperature=-1 must be"),
        (["x"], Sampling(top_k=-1), "top_k=-1 must be"),
        (["x"], Sampling(top_p=0), "top_p=0 must be"),
    ],
)
def test_what_cannot_be_written_is_refused(writer, prompts, sampling, sentence):
    with pytest.raises(ValueError, match=sentence):
        written(writer, prompts, 1, sampling)


def drawing(writer: Writer, monkeypatch: pytest.MonkeyPatch, *texts: bytes, chunk: int = 16) -> None:
    """Makes the writer draw these bytes, a row each, and then end tokens."""
    length = -(-max(map(len, texts)) // chunk) * chunk

    def draw(*_: object):
        rows = np.stack([np.frombuffer(text.ljust(length, b"\0"), np.uint8).astype(np.int32) for text in texts])
        for row, text in enumerate(texts):
            rows[row, len(text) :] = writer.tokenizer.end_id
        for begin in range(0, length, chunk):
            yield rows[:, begin : begin + chunk], np.zeros((len(texts), chunk), np.float32)

    monkeypatch.setattr(writer, "_draw", draw)


@pytest.mark.core
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_half_a_character_waits_for_its_other_half(writer, monkeypatch, chunk):
    text = "한국어, 日本語, emoji 🦙 und Umlaute: äöü."
    drawing(writer, monkeypatch, text.encode(), chunk=chunk)
    pieces = [piece for piece, _ in writer.write([""], 1, GREEDY, 0)]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    drawing(writer, monkeypatch, text.encode() + "語".encode()[:2], chunk=chunk)
    assert written(writer, [""], 1)[0].text == text + "\N{REPLACEMENT CHARACTER}"


@pytest.mark.core
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_a_stop_ends_the_text_and_is_not_shown(writer, monkeypatch, chunk):
    drawing(writer, monkeypatch, "하나.\n둘.\n\n셋".encode(), b"never stops", b"\n\nat once", chunk=chunk)
    continuations = written(writer, ["", "", ""], 1, stop=["\n\n", "xyz"])
    assert [continuation.text for continuation in continuations] == ["하나.\n둘.", "never stops", ""]
    # The first of two stops counts, and what only looked like the beginning of one is shown.
    drawing(writer, monkeypatch, b"aab aabc abcd", chunk=chunk)
    assert written(writer, [""], 1, stop=["abcd", "bc"])[0].text == "aab aa"
    drawing(writer, monkeypatch, b"ends with ab", chunk=chunk)
    assert written(writer, [""], 1, stop=["abc"])[0].text == "ends with ab"


def test_a_stop_within_a_token_drops_what_follows(writer, monkeypatch):
    """A token of several bytes may hold a stop and, behind it, half a character."""
    monkeypatch.setattr(
        type(writer.tokenizer), "token_bytes", lambda self, token: b"a\n\xed" if token == 1 else bytes([token])
    )
    drawing(writer, monkeypatch, b"x\x01yz")
    assert written(writer, [""], 1, stop=["\n"])[0].text == "xa"


def test_the_command_streams_one_prompt_and_returns_what_it_wrote(uninterrupted, plain_loop, capsys):
    arguments = Arguments(uninterrupted[0].run_dir, ("the License",), max_tokens=12, temperature=0)
    (value,) = generate(arguments, Console())
    tokens, _ = plain_loop("the License", 12)
    assert value["prompt"] == "the License"
    assert value["tokens"] == tokens
    assert len(value["log_probabilities"]) == 12
    assert set(value) == {"prompt", "text", "tokens", "log_probabilities"}
    assert capsys.readouterr().out == f"the License{value['text']}\n"


def test_the_command_shows_probabilities_and_several_prompts(uninterrupted, capsys):
    run_dir = uninterrupted[0].run_dir
    values = generate(
        Arguments(run_dir, ("the ", "You"), max_tokens=3, temperature=0, show_probabilities=True), Console()
    )
    shown = capsys.readouterr().out
    for value in values:
        assert repr(value["prompt"]) in shown
        assert all(f"{np.exp(log_p):.2%}" in shown for log_p in value["log_probabilities"])
    again = generate(Arguments(run_dir, ("the ", "You"), max_tokens=3, temperature=0), Console())
    assert again == values
    assert capsys.readouterr().out == f"the {values[0]['text']}\n\nYou{values[1]['text']}\n"


# Other models than decoders, with random weights: what the command makes of their kind.


PAIRS = EncoderDecoderConfig(
    num_layers=1,
    model_dim=16,
    num_heads=4,
    vocab_size=300,
    max_length=32,
    positions="sinusoidal",
    init="normal",
    init_std=0.4,
)
RECURRENT = RecurrentConfig(num_layers=1, model_dim=16, vocab_size=300, max_length=32, init_std=0.4)
MASKED = EncoderConfig(num_layers=1, model_dim=16, num_heads=4, vocab_size=300, max_length=32, init_std=0.4)


@pytest.fixture(scope="module")
def masking() -> Tokenizer:
    return train_sentencepiece(["the capital of France is Paris\n" * 40], 300, roles=["mask"])


@pytest.fixture(scope="module")
def encoder(write_run, masking) -> str:
    return write_run(MASKED, masking)


@pytest.mark.core
@pytest.mark.parametrize("model", [PAIRS, RECURRENT], ids=["transformer", "recurrent"])
def test_the_command_translates(model, masking, write_run, capsys):
    run_dir = write_run(model, masking)
    values = generate(Arguments(run_dir, ("the capital", "is"), max_tokens=6, num_beams=2), Console())
    assert capsys.readouterr().out == "".join(f"{value['text']}\n" for value in values)
    for value, prompt in zip(values, ("the capital", "is"), strict=True):
        assert value["prompt"] == prompt
        assert len(value["tokens"]) == len(value["log_probabilities"]) <= 6
        assert value["text"] == masking.decode(value["tokens"])
        assert set(value) == {"prompt", "text", "tokens", "log_probabilities"}
    assert len(values[0]["tokens"]) > 0
    shown = generate(Arguments(run_dir, ("is",), max_tokens=6, num_beams=2, show_probabilities=True), Console())
    assert shown[0]["tokens"] == values[1]["tokens"]
    assert f"{np.exp(shown[0]['log_probabilities'][0]):.2%}" in capsys.readouterr().out


@pytest.mark.core
def test_what_learned_to_denoise_reads_sources_from_the_start_token_on(masking, write_run, capsys):
    """And masks as such. With a temperature it draws, which greedily is a search with one beam."""
    run_dir = write_run(PAIRS, masking, objective=DenoisingConfig())
    arguments = Arguments(run_dir, ("the [MASK] of",), max_tokens=6)
    ways = ({"num_beams": 1}, {"temperature": 0})
    (found,), (drawn,) = (generate(replace(arguments, **way), Console()) for way in ways)
    assert capsys.readouterr().out == f"{found['text']}\n{drawn['text']}\n", "sources are not shown"
    run = load_run(run_dir)
    start, mask, end = ([masking.special(role)] for role in ("start", "mask", "end"))
    source = np.concatenate([start, masking.encode("the"), mask, masking.encode(" of"), end])
    (expected,) = Translator(run.plan, run.params, masking, run.mesh).translate([source], Beam(1), max_tokens=6)
    assert found["tokens"] == drawn["tokens"] == expected.tokens
    np.testing.assert_allclose(drawn["log_probabilities"], found["log_probabilities"], atol=1e-4)


@pytest.mark.core
def test_the_command_fills_masks(encoder, masking, capsys):
    prompts = ("the [MASK] of [MASK]", "is <mask>")
    values = generate(Arguments(encoder, prompts), Console())
    assert capsys.readouterr().out == "".join(f"{value['text']}\n" for value in values)
    run = load_run(encoder)
    logits_of = jax.jit(lambda tokens: merge(run.plan.skeleton, run.params)(tokens)["logits"][0])
    mask = masking.special("mask")
    texts = ([*masking.encode("the"), mask, *masking.encode(" of"), mask], [*masking.encode("is"), mask])
    for value, prompt, text in zip(values, prompts, texts, strict=True):
        read = [masking.start_id, *text]
        log_p = jax.nn.log_softmax(logits_of(jnp.array([read])))
        places = [place for place, token in enumerate(read) if token == mask]
        best = [int(log_p[place].argmax()) for place in places]
        assert value["prompt"] == prompt
        assert value["tokens"] == best
        np.testing.assert_allclose(value["log_probabilities"], [log_p[place].max() for place in places], atol=1e-4)
        for place, token in zip(places, best, strict=True):
            read[place] = token
        assert value["text"] == masking.decode(read)
    generate(Arguments(encoder, prompts[:1], show_probabilities=True), Console())
    shown = capsys.readouterr().out.splitlines()
    numbers = [line.split()[0] for line in shown[2:]]
    assert numbers == list("1111122222"), "the best few for each mask"
    assert any(f"{np.exp(values[0]['log_probabilities'][0]):.2%}" in line for line in shown)


@pytest.fixture(scope="module")
def runs(uninterrupted, encoder, masking, write_run) -> dict[str, str]:
    """A run of each kind of model, by name."""
    vision = VisionConfig(
        num_layers=1, model_dim=16, num_heads=4, image_size=8, patch_size=4, channels=1, num_classes=2
    )
    return {
        "decoder": uninterrupted[0].run_dir,
        "encoder": encoder,
        "pooler": write_run(replace(MASKED, head="pooler"), masking, objective=MaskedLMConfig()),
        "maskless": write_run(MASKED, ByteTokenizer()),
        "pairs": write_run(PAIRS, masking),
        "recurrent": write_run(RECURRENT, masking),
        "vision": write_run(vision, masking, data=ImagesConfig(path="images")),
    }


@pytest.mark.core
@pytest.mark.parametrize(
    ("kind", "prompts", "options", "sentence"),
    [
        ("decoder", ["a [MASK]"], {}, r"'a \[MASK\]' has a mask, and a decoder continues text and fills none; name an"),
        ("decoder", ["<mask>"], {}, "has a mask, and a decoder"),
        ("decoder", [], {}, "there is no prompt; give --prompt TEXT"),
        ("encoder", ["a king"], {}, "'a king' has no mask, and an encoder reads text and continues none; write"),
        ("pooler", ["a [MASK]"], {}, "this encoder's head is pooler, which predicts no tokens; an encoder reads text"),
        ("maskless", ["a [MASK]"], {}, "this bytes tokenizer has no mask token"),
        ("pairs", ["x" * 40], {}, "the source has 41 tokens, its end among them, more than the model's max_length=32"),
        ("pairs", ["x" * 40], {"temperature": 1.0}, "the source has 41 tokens"),
        ("pairs", ["x"], {"num_beams": 0}, "num_beams=0 must be at least 1"),
        ("recurrent", ["x"], {"temperature": 1.0}, "a recurrent model only searches, and draws no tokens; leave"),
        (
            "decoder",
            ["x"],
            {"num_beams": 2},
            "--num-beams says how a translation is searched, and here tokens are drawn",
        ),
        ("pairs", ["x"], {"top_k": 5}, "--top-k says how tokens are drawn, and without --temperature a translation is"),
        ("encoder", ["a [MASK]"], {"max_tokens": 5}, "--max-tokens says how text is written, and an encoder writes"),
        ("vision", ["x"], {}, "holds a model that reads images, and a prompt is text; name the run of a decoder"),
    ],
)
def test_what_a_model_cannot_do_is_refused(runs, kind, prompts, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(Arguments(runs[kind], tuple(prompts), **options), Console())
