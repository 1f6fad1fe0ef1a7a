"""The rows of the other structures: an encoder, an encoder-decoder and a vision transformer, beside transformers.

Its models run eagerly with fused attention, from our weights, on the same batches; nothing is padding and nothing is
dropped.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rows import CPU, OPTIMIZER, TORCH, one_document, tensors, text_batch, text_run, training

from data.dataset import DataConfig
from data.images import ImagesConfig
from model.beam import Beam, beam_search
from model.decode import unstack
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.families import bert, transformer, vit
from model.families import llama as llama_family
from model.parameters import Params, merge
from model.presets import Family
from model.vision import VisionConfig
from train.config import RunConfig
from train.mesh import MeshConfig, make_mesh
from train.objectives.classify import ClassifyImagesConfig
from train.objectives.masked_lm import MaskedLMConfig
from train.objectives.seq2seq import Seq2SeqConfig
from train.state import Blueprint, blueprint

_TRANSFORMERS = TORCH and importlib.util.find_spec("transformers") is not None
if TORCH:
    from torch_training import DEVICE, Trainer, on_device, torch

_ENCODER = EncoderConfig(num_layers=4, model_dim=256, num_heads=4, vocab_size=8192, max_length=128)
_PAIR: EncoderDecoderConfig = replace(transformer.PRESETS["transformer-tiny"], attention_bias=True, dropout=0.0)
_END = _PAIR.vocab_size - 1  # which starts, ends and pads, and is in no text
_TOKENS = {"marian": dict.fromkeys(("decoder_start_token_id", "eos_token_id", "pad_token_id"), _END)}
_VISION = VisionConfig(num_layers=6, model_dim=192, num_heads=3, image_size=32, patch_size=4, num_classes=10)


def masked_lm(_: str) -> dict[str, Any]:
    """A step of masked language modelling: 15 % of the places, each row's kept in a multiple of eight.

    transformers projects every place onto the vocabulary; it is also measured with the projection of ours alone.
    """
    rows, length, chosen, kept = 16, 128, 20, 24
    random = np.random.default_rng(0)
    batch = one_document(random.integers(0, _ENCODER.vocab_size, (rows, length), np.int32))
    order = np.argsort(random.random((rows, length)), axis=1)[:, :chosen]
    places = np.pad(np.sort(order, axis=1), ((0, 0), (0, kept - chosen))).astype(np.int32)
    targets = random.integers(0, _ENCODER.vocab_size, (rows, kept), np.int32)
    batch |= {"places": places, "targets": targets, "scored": np.tile(np.arange(kept) < chosen, (rows, 1))}

    def theirs(plan: Blueprint, params: Params) -> dict[str, Any]:
        tokens, at, wanted = map(on_device, (batch["tokens"], places, targets))
        at, wanted = at[:, :chosen], wanted[:, :chosen]
        labels = torch.full_like(tokens, -100).scatter(1, at, wanted)

        def everywhere(model: Any) -> Any:
            return model(tokens, labels=labels).loss

        def where_chosen(model: Any) -> Any:
            hidden = model.bert(tokens).last_hidden_state
            logits = model.cls(torch.take_along_dim(hidden, at[..., None], dim=1))
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

        trainer = partial(_trainer, bert, plan, params)
        return {"transformers": trainer(everywhere), "transformers, chosen places": trainer(where_chosen)}

    config = RunConfig(_ENCODER, DataConfig(max_length=length), MaskedLMConfig(), batch_size=rows)
    return training(config, batch, ("tokens", rows * length), theirs if _TRANSFORMERS else None)


def llama(_: str) -> dict[str, Any]:
    """A step of Llama 3.2 1B on rows of 2,048 tokens."""
    if CPU:
        return {"not_run": "needs an accelerator"}
    stream, batch = text_batch("llama-1b")

    def theirs(plan: Blueprint, params: Params) -> dict[str, Any]:
        read, labels = on_device(stream[:, :-1]), on_device(stream[:, 1:])

        def loss(reference: Any) -> Any:
            return torch.nn.functional.cross_entropy(reference(read).logits.flatten(0, 1), labels.flatten())

        return {"transformers": _trainer(llama_family, plan, params, loss)}

    return training(text_run("llama-1b"), batch, ("tokens", batch["tokens"].size), theirs if _TRANSFORMERS else None)


def translate(_: str) -> dict[str, Any]:
    """A step of translation, each row a source and its target."""
    rows, length = 32, 64
    source, stream = _sources(rows, length), _sources(rows, length + 1)
    batch = {f"source_{name}": array for name, array in one_document(source).items()} | one_document(stream[:, :-1])
    batch |= {"targets": stream[:, 1:], "scored": np.ones((rows, length), bool)}

    def theirs(plan: Blueprint, params: Params) -> dict[str, Any]:
        read, written, labels = map(on_device, (source, stream[:, :-1], stream[:, 1:]))

        def loss(model: Any) -> Any:
            return model(read, decoder_input_ids=written, labels=labels).loss

        return {"transformers": _trainer(transformer, plan, params, loss)}

    config = RunConfig(_PAIR, DataConfig(max_length=length), Seq2SeqConfig(), batch_size=rows)
    return training(config, batch, ("target tokens", rows * length), theirs if _TRANSFORMERS else None)


def beam(_: str) -> dict[str, Any]:
    """Translating a batch with four beams, all of them to the limit: these weights have not learned to end."""
    rows, length, new, plan = 16, 24, 32, blueprint(_PAIR)
    search = Beam(4, 0.6, "power")
    source = _sources(rows, length)
    params = jax.jit(partial(plan.init, 0))()
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        model, layers = jax.jit(lambda params: unstack(merge(plan.skeleton, params)))(params)
    arguments = jnp.asarray(source), jnp.ones_like(source), jnp.full(rows, new, jnp.int32), _END, _END

    def write() -> np.ndarray:
        with jax.set_mesh(mesh):
            tokens, _ = beam_search(model, layers, *arguments, beam=search, max_tokens=new)
            return np.asarray(tokens)[:, 0]

    systems: dict[str, Callable] = {"jumok": write}
    if _TRANSFORMERS:
        reference = _reference(transformer, plan, params).eval()
        generate = partial(
            reference.generate,
            on_device(source),
            attention_mask=on_device(np.ones_like(source)),
            num_beams=search.num_beams,
            length_penalty=search.length_penalty,
            max_new_tokens=new,
            do_sample=False,
            forced_eos_token_id=None,
            bad_words_ids=None,
        )
        systems["transformers"] = lambda: generate()[:, 1:].cpu().numpy()
    drawn = {name: call() for name, call in systems.items()}
    equal = [f"{(tokens == drawn['jumok']).mean():.1%} of {name}'s tokens equal ours" for name, tokens in drawn.items()]
    return {
        "what": f"{rows} x {length} tokens read and {rows} x {new} written, {search.num_beams} beams, float32",
        "systems": systems,
        "columns": [("tokens / CPU-s", "cpu", rows * new), ("tokens / s", "wall", rows * new)],
        "agreement": ", ".join(equal[1:]),
    }


def classify_images(_: str) -> dict[str, Any]:
    """A step of the classification of images."""
    rows, size = 32, _VISION.image_size
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (rows, size, size, 3), np.uint8)
    labels = random.integers(0, _VISION.num_classes, rows, np.int32)

    def theirs(plan: Blueprint, params: Params) -> dict[str, Any]:
        pixels = on_device(images).permute(0, 3, 1, 2)
        wanted = on_device(labels)

        def loss(model: Any) -> Any:
            return torch.nn.functional.cross_entropy(model(pixels / 127.5 - 1).logits, wanted)

        return {"transformers": _trainer(vit, plan, params, loss)}

    config = RunConfig(_VISION, ImagesConfig(), ClassifyImagesConfig(), batch_size=rows)
    batch = {"images": images, "labels": labels}
    return training(config, batch, ("images", rows), theirs if _TRANSFORMERS else None)


def _sources(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, _END, (rows, length), np.int32)


def _reference(family: Family, plan: Blueprint, params: Mapping[str, Any]) -> Any:
    """The model of transformers that computes ours, with our weights."""
    transformers = importlib.import_module("transformers")
    cls = getattr(transformers, family.architecture(plan.config))
    config = cls.config_class(**family.to_hugging_face_config(plan.config) | _TOKENS.get(family.MODEL_TYPE, {}))
    return cls.from_pretrained(None, config=config, state_dict=tensors(family, plan, params)).train().to(DEVICE)


def _trainer(family: Family, plan: Blueprint, params: Params, loss: Callable[[Any], Any]) -> Any:
    """Steps of transformers' model, from our weights, that decay what we decay."""
    reference = _reference(family, plan, params)
    marks = {name: np.full(d.shape, d.kind == "matrix", np.float32) for name, d in plan.declared.items()}
    matrices = [name for name, marked in _reference(family, plan, marks).named_parameters() if marked.all()]
    weights = {name: weight for name, weight in reference.named_parameters() if weight.requires_grad}
    return Trainer(partial(loss, reference), weights, matrices, OPTIMIZER)
