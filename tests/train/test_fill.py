"""Masks filled by an encoder: the tokens that transformers' pipeline finds, and refusals in a sentence."""

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer
from model.encoder import EncoderConfig
from train.export import import_folder
from train.fill import Filler
from train.mesh import MeshConfig, make_mesh, parameter_shardings
from train.state import blueprint

PROMPTS = ["the capital of [MASK] is [MASK].", "<mask> is paris", "a king of the [MASK]"]
WORDS = ["the", "capital", "of", "france", "is", "paris", "a", "king", "city", ".", ",", "##s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, large enough for its probabilities to differ, as transformers writes it."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("bert")
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(path)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=1.0,
    )
    transformers.set_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(path)
    return path


def filler_of(folder: Path, mesh_config: MeshConfig, devices: int) -> Filler:
    config, params, _ = import_folder(str(folder))
    plan, mesh = blueprint(config), make_mesh(mesh_config, jax.devices()[:devices])
    shardings = parameter_shardings(plan.declared, mesh)
    placed = {name: jax.device_put(np.asarray(params[name]), shardings[name]) for name in plan.declared}
    return Filler(plan, placed, load_tokenizer(folder), mesh)


@pytest.fixture(scope="module")
def filler(folder: Path) -> Filler:
    return filler_of(folder, MeshConfig(data=1), 1)


def test_the_tokens_are_those_of_transformers(folder, filler):
    pipeline = importlib.import_module("transformers").pipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = pipeline("fill-mask", model=str(folder), top_k=5)
        expected: list[Any] = [theirs(prompt.replace("<mask>", "[MASK]")) for prompt in PROMPTS]
    for ours, masks in zip(filler.fill(PROMPTS), expected, strict=True):
        masks: Sequence[Any] = masks if isinstance(masks[0], list) else [masks]
        assert ours.tokens.tolist() == [[choice["token"] for choice in mask] for mask in masks]
        probabilities = [[choice["score"] for choice in mask] for mask in masks]
        np.testing.assert_allclose(np.exp(ours.log_probabilities), probabilities, rtol=1e-4)
        if len(masks) == 1:
            assert ours.text == masks[0][0]["sequence"]


def test_any_mesh_and_any_company_fill_alike(folder, filler):
    other = filler_of(folder, MeshConfig(data=2, fsdp=2, tensor=2), 8)
    for ours, alone in zip(filler.fill(PROMPTS), map(other.fill, ([prompt] for prompt in PROMPTS)), strict=True):
        assert ours.text == alone[0].text
        np.testing.assert_allclose(ours.log_probabilities, alone[0].log_probabilities, atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("the capital", r"'the capital' has no mask, and an encoder reads text and continues none; write \[MASK\]"),
        ("the " * 15 + "[MASK]", "more than the 16 tokens that the model reads, the longest 18; shorten"),
    ],
)
def test_what_cannot_be_filled_is_refused(filler, prompt, sentence):
    with pytest.raises(ValueError, match=sentence):
        filler.fill([prompt])


@pytest.mark.core
def test_an_encoder_that_predicts_no_tokens_is_refused():
    sizes: dict[str, Any] = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "vocab_size": 20, "max_length": 16}
    plan = blueprint(EncoderConfig(**sizes, head="pooler"))
    with pytest.raises(ValueError, match="this encoder's head is pooler, which predicts no tokens; an encoder reads"):
        Filler(plan, {}, ByteTokenizer(), make_mesh(MeshConfig()))
