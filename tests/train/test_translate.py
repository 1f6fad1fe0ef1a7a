"""Translations: each the same in any company and on any mesh, within its limits, and as probable as the model says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike

import train.translate
from data.tokenizers.plain import ByteTokenizer
from model.beam import Beam
from model.encoder_decoder import EncoderDecoderConfig
from model.parameters import merge
from model.recurrent import RecurrentConfig
from train.export import import_folder
from train.mesh import MeshConfig, make_mesh, parameter_shardings
from train.state import Blueprint, blueprint
from train.translate import Translation, Translator, decoder_start_id, encode_source

pytestmark = pytest.mark.core

TOKENIZER = ByteTokenizer()
MODELS = {
    "transformer": EncoderDecoderConfig(
        num_layers=1,
        model_dim=16,
        num_heads=4,
        vocab_size=257,
        max_length=32,
        positions="sinusoidal",
        init="normal",
        init_std=0.4,
    ),
    "recurrent": RecurrentConfig(
        num_layers=1, model_dim=16, vocab_size=257, max_length=32, attention="dot", init_std=0.4
    ),
}
TEXTS = ["Ein Hund.", "", "Zwei Männer spielen.", "Ja", "Eine Frau in Rot liest.", "x"]
BEAM = Beam(3)


@pytest.fixture(scope="module", autouse=True)
def _brief():
    """A translation has at most five tokens more than its source."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.translate, "LONGER", 5)
        yield


@pytest.fixture(scope="module", params=MODELS)
def plan(request) -> Blueprint:
    return blueprint(MODELS[request.param])


@pytest.fixture(scope="module")
def translator(plan) -> Translator:
    return translator_on(plan, MeshConfig(data=1), 1)


def translator_on(plan: Blueprint, mesh_config: MeshConfig, devices: int) -> Translator:
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    shardings = parameter_shardings(plan.declared, mesh)
    params = {name: jax.device_put(value, shardings[name]) for name, value in plan.init(0).items()}
    return Translator(plan, params, TOKENIZER, mesh)


def sources(*texts: str) -> list[np.ndarray]:
    return [encode_source(text, TOKENIZER, 32) for text in texts]


@pytest.fixture(scope="module")
def together(translator) -> list[Translation]:
    return translator.translate(sources(*TEXTS), BEAM, batch_size=4)


def test_company_and_order_change_nothing(translator, together):
    """Sorted by length, padded to one of two lengths, in batches that are filled up, and told apart again."""
    seen = []
    backwards = sources(*TEXTS[::-1])
    assert translator.translate(backwards, BEAM, batch_size=4, progress=lambda *at: seen.append(at)) == together[::-1]
    assert seen[-1] == (6, 6)
    for number, text in enumerate(TEXTS):
        assert translator.translate(sources(text), BEAM, batch_size=4) == [together[number]]
    assert len({translation.text for translation in together}) > 3, "all alike, which proves little"
    assert translator.translate([], BEAM) == []


def test_any_mesh_translates_the_same(plan, together):
    other = translator_on(plan, MeshConfig(data=2, fsdp=2, tensor=2), 8)
    assert other.translate(sources(*TEXTS[:2]), BEAM, batch_size=4) == together[:2]


def test_one_beam_is_the_plain_loop(plan, translator):
    """The whole model, read anew for each token."""
    model = merge(plan.skeleton, plan.init(0))
    (source,) = sources(TEXTS[2])
    read = jax.jit(lambda target: jax.nn.log_softmax(model(source[None], target[None])[0]))
    tokens, log_p = [TOKENIZER.start_id], []
    while len(tokens) <= 20 and (len(tokens) == 1 or tokens[-1] != TOKENIZER.end_id):
        of_next = read(jnp.array(tokens + [0] * (32 - len(tokens))))[len(tokens) - 1]
        tokens.append(int(of_next.argmax()))
        log_p.append(float(of_next[tokens[-1]]))
    translations = translator.translate([source], Beam(1), max_tokens=20)
    written = [token for token in tokens[1:] if token != TOKENIZER.end_id]
    assert translations == [Translation(TOKENIZER.decode(written), written)]
    (of_tokens,) = translator.log_probabilities([source], translations)
    np.testing.assert_allclose(of_tokens, log_p[: len(written)], atol=1e-4)


def test_log_probabilities_are_of_each_token_whatever_the_order(translator, together):
    of_all = translator.log_probabilities(sources(*TEXTS), together)
    assert [len(log_p) for log_p in of_all] == [len(translation.tokens) for translation in together]
    assert translator.log_probabilities(sources(*TEXTS[::-1]), together[::-1]) == of_all[::-1]


def test_a_translation_has_its_limit(translator, monkeypatch):
    monkeypatch.setattr(translator, "tokenizer", NeverEnding())
    found = translator.translate(sources(*TEXTS), BEAM, batch_size=4)
    assert [len(translation.tokens) for translation in found] == [min(len(s) + 5, 32) for s in sources(*TEXTS)]


class NeverEnding(ByteTokenizer):
    """Its end is a token that no model writes."""

    def __init__(self):
        super().__init__()
        self.end_id = 1000

    def decode(self, tokens: ArrayLike) -> str:
        return ""


@pytest.mark.parametrize(
    ("beam", "options", "sentence"),
    [
        (Beam(0), {}, "num_beams=0 must be at least 1"),
        (Beam(), {"max_tokens": 33}, "max_tokens=33 must be between 1 and the model's max_length=32"),
        (Beam(), {"max_tokens": 0}, "max_tokens=0 must be"),
        (Beam(), {"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(translator, beam, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        translator.translate(sources("x"), beam, **options)


def test_a_source_that_is_too_long_is_refused():
    assert sources("x" * 31)[0].tolist() == [ord("x")] * 31 + [TOKENIZER.end_id]
    with pytest.raises(ValueError, match="the source has 33 tokens, its end among them, more than the model's max_len"):
        sources("x" * 32)


def test_an_imported_model_translates_as_transformers_does(tmp_path):
    """Its decoder starts with its own token; sources of different lengths are padded there and here."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.MarianConfig(
        vocab_size=257,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        init_std=0.6,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=TOKENIZER.end_id,
        forced_eos_token_id=None,
    )
    transformers.set_seed(0)
    theirs = transformers.MarianMTModel(config).eval()
    theirs.save_pretrained(tmp_path)
    read = sources(*TEXTS)
    length = max(map(len, read))
    ids = torch.tensor(np.stack([np.pad(source, (0, length - len(source))) for source in read]), dtype=torch.long)
    mask = torch.tensor([[1] * len(source) + [0] * (length - len(source)) for source in read])
    asked = {"num_beams": 3, "length_penalty": 0.0, "max_new_tokens": 5, "do_sample": False, "early_stopping": False}
    with torch.no_grad():
        expected = theirs.generate(ids, attention_mask=mask, **asked).tolist()

    model, params, _ = import_folder(str(tmp_path))
    assert isinstance(model, EncoderDecoderConfig)
    assert decoder_start_id(model, TOKENIZER) == 0 != TOKENIZER.start_id
    placed = {name: jnp.asarray(value) for name, value in params.items()}
    ours = Translator(blueprint(model), placed, TOKENIZER, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    found = ours.translate(read, Beam(3, 0.0), max_tokens=5)
    for translation, row in zip(found, expected, strict=True):
        assert translation.tokens == [token for token in row[1:] if token not in (0, TOKENIZER.end_id)]
