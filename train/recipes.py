"""Named runs: functions that return a whole `RunConfig`, of which the command line overrides values.

Small ones are here, for laptops and for trying things out; those of published models are in train/published.py.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from etils import epath

from data.dataset import DataConfig
from data.images import ImagesConfig
from data.own_code import call_own
from data.sources import names_code
from data.strict_json import json_object
from model.decoder import DecoderConfig
from model.distillation import DistillationConfig
from model.encoder import EncoderConfig
from model.generator_discriminator import GeneratorDiscriminatorConfig
from model.image_decoder import ImageDecoderConfig
from model.presets import PRESETS
from model.recurrent import RecurrentConfig
from model.vision import VisionConfig
from train.config import EvaluateConfig, RunConfig, SampleConfig, from_json
from train.objectives.caption import CaptionConfig
from train.objectives.classify import ClassifyConfig, ClassifyImagesConfig
from train.objectives.denoising import DenoisingConfig
from train.objectives.distill import DistillConfig
from train.objectives.masked_lm import MaskedLMConfig
from train.objectives.replaced_token import ReplacedTokenConfig
from train.objectives.seq2seq import Seq2SeqConfig
from train.objectives.span_corruption import SpanCorruptionConfig
from train.objectives.table import make_objective
from train.optimizer import OptimizerConfig
from train.published import MUST_BE_GIVEN, PAIRS, PUBLISHED


def tiny() -> RunConfig:
    """What `make train` runs: a small Llama learns the text that Python carries, in about three minutes of two cores.

    jumok train

    Reached on two cores, in 2:27 minutes with the installation: 1.77 bits a byte of held-out text, where a unigram
    model of the same tokens has 2.96.
    """
    return RunConfig(
        name="tiny",
        model=_llama(num_layers=4, model_dim=192, num_heads=6, num_kv_heads=2, vocab_size=2048, max_length=128),
        data=DataConfig(tokenizer="sentencepiece", max_length=128),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=40),
        steps=600,
        batch_size=16,
        evaluate=EvaluateConfig(every=200, tokens=20_000),
        sample=SampleConfig(prompt="def "),
    )


def char_shakespeare() -> RunConfig:
    """The laptop setting of nanoGPT (github.com/karpathy/nanoGPT): characters of Shakespeare, 64 at a time.

    jumok train char_shakespeare --data.path shakespeare.txt

    Model, batch and steps are nanoGPT's; the learning rate is three times its 1e-3, with which this reaches 1.89.
    Reached on two cores, in 1:15 minutes: 1.763 nats a character of the held-out tenth.
    """
    return RunConfig(
        name="char_shakespeare",
        model=DecoderConfig(num_layers=4, model_dim=128, num_heads=4, vocab_size=66, max_length=64),
        data=DataConfig(path=MUST_BE_GIVEN, tokenizer="characters", max_length=64),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100, final_fraction=0.05, b2=0.99),
        steps=2000,
        batch_size=12,
        evaluate=EvaluateConfig(every=250, tokens=20_000),
        sample=SampleConfig(prompt="\n", tokens=48),
    )


def books() -> RunConfig:
    """Books learned in 24 minutes of CPU time, on two cores.

    jumok train books --data.path books/ --data.valid-path other-books/

    Reached on 32 MB of classic books, held out those of other authors: 1.77 bits a byte, a unigram model's are 2.80.
    """
    return RunConfig(
        name="books",
        model=_llama(num_layers=4, model_dim=256, num_heads=8, num_kv_heads=4, vocab_size=4096, max_length=256),
        data=DataConfig(path=MUST_BE_GIVEN, tokenizer="sentencepiece", max_length=256),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100, final_fraction=0.05),
        steps=2400,
        batch_size=8,
        evaluate=EvaluateConfig(every=400, tokens=50_000),
        sample=SampleConfig(prompt="It was ", tokens=200),
    )


def bert_tiny() -> RunConfig:
    r"""A small BERT learns the text that Python carries, masked, or that of --data.path.

    jumok train bert_tiny --data.path books/ --data.valid-path other-books/

    Its rows are short: until attention has found a masked token's neighbours, the loss stays at that of single tokens,
    for 600 steps with rows of 32 tokens, and for thousands with rows of 128. As BERT did, go on with longer ones:

    jumok train bert_tiny --from runs/bert_tiny --run-dir runs/bert_128 --data.max-length 128 --batch-size 32 \
        --steps 1000 --data.path books/ --data.valid-path other-books/

    Reached on two cores in 10 minutes, on 32 MB of books, held out those of other authors: pseudo-perplexity 16.4.
    """
    return RunConfig(
        name="bert_tiny",
        model=_bert(),
        data=DataConfig(tokenizer="sentencepiece", max_length=32),
        objective=MaskedLMConfig(rate=0.2),
        optimizer=OptimizerConfig(name="muon", learning_rate=4e-3, warmup_steps=100, b2=0.98, weight_decay=0.01),
        steps=3000,
        batch_size=128,
        evaluate=EvaluateConfig(every=1000, tokens=20_000),
        sample=SampleConfig(tokens=0),
    )


def electra_tiny() -> RunConfig:
    """A small ELECTRA, for as much computing as `bert_tiny`: a discriminator of its size, and a generator half as wide.

    jumok train electra_tiny --data.path books/ --data.valid-path other-books/

    Reached in 12 minutes: the generator 4.57 nats a masked token, and of replaced tokens the discriminator finds 12 %.
    """
    return replace(
        bert_tiny(),
        name="electra_tiny",
        model=GeneratorDiscriminatorConfig(
            generator=_bert(model_dim=64, num_heads=2, embedding_dim=128),
            discriminator=_bert(head="replaced_token", pooler_activation="gelu"),
        ),
        objective=ReplacedTokenConfig(rate=0.2),
        steps=2000,
    )


def distilbert_tiny() -> RunConfig:
    """A student with half of its teacher's layers, by DistilBERT's three losses.

    jumok train distilbert_tiny --objective.teacher runs/bert_tiny --data.path books/
    """
    return replace(
        bert_tiny(),
        name="distilbert_tiny",
        model=DistillationConfig(student=_bert(num_layers=1), teacher=_bert()),
        objective=DistillConfig(teacher=MUST_BE_GIVEN, start_from_teacher=True),
        steps=1000,
    )


def classify() -> RunConfig:
    """Texts and their classes, from scratch, or with --from from a model that knows its language.

    jumok train classify --from runs/bert_tiny --data.path sms.tsv --data.label-column label
    """
    return RunConfig(
        name="classify",
        model=_bert(head="sequence_classification"),
        data=DataConfig(MUST_BE_GIVEN, label_column="label", tokenizer="sentencepiece", max_length=128, too_long="cut"),
        objective=ClassifyConfig(),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=50, schedule="linear", final_fraction=0.0, b2=0.98, weight_decay=0.01
        ),
        steps=600,
        batch_size=32,
        evaluate=EvaluateConfig(every=200),
        sample=SampleConfig(tokens=0),
    )


def vit_mnist() -> RunConfig:
    """A small vision transformer learns to read digits, in 49 patches of 4 x 4 pixels.

    jumok train vit_mnist --data.path train-images-idx3-ubyte.gz

    Reached in 11 minutes of CPU time: 99.2 % of the 6,000 digits that are held out of MNIST's training set.
    """
    return RunConfig(
        name="vit_mnist",
        model=_digits(head="classification", num_classes=10),
        data=ImagesConfig(MUST_BE_GIVEN, shift=2),
        objective=ClassifyImagesConfig(),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=4e-3, warmup_steps=200, final_fraction=0.01, weight_decay=0.05
        ),
        steps=3000,
        batch_size=128,
        evaluate=EvaluateConfig(every=1000),
        sample=SampleConfig(tokens=0),
    )


def caption_mnist() -> RunConfig:
    """The image as the prefix of a decoder that writes the digit's name, letter by letter.

    jumok train caption_mnist --data.path train-images-idx3-ubyte.gz
    """
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return replace(
        vit_mnist(),
        name="caption_mnist",
        model=ImageDecoderConfig(
            vision=_digits(head="none"),
            decoder=_llama(num_layers=1, model_dim=64, num_heads=4, num_kv_heads=4, vocab_size=257, max_length=8),
            classes=names,
        ),
        data=ImagesConfig(MUST_BE_GIVEN, shift=2, tokenizer="bytes"),
        objective=CaptionConfig(),
        steps=1000,
    )


def t5_tiny() -> RunConfig:
    """A small T5 learns the text that Python carries, or that of --data.path, by span corruption.

    jumok train t5_tiny --data.path books/ --data.valid-path other-books/
    """
    return RunConfig(
        name="t5_tiny",
        model=replace(PRESETS["t5-v1.1-small"], **_ENCODER_DECODER, mlp_dim=256),
        data=DataConfig(tokenizer="sentencepiece", max_length=128, packing="contiguous"),
        objective=SpanCorruptionConfig(),
        optimizer=OptimizerConfig(name="muon", learning_rate=4e-3, warmup_steps=100, weight_decay=0.01),
        steps=1500,
        batch_size=16,
        evaluate=EvaluateConfig(every=500, tokens=50_000),
        sample=SampleConfig(tokens=0),
    )


def bart_tiny() -> RunConfig:
    """A small BART learns the same by denoising: its sentences are shuffled, and spans of them hidden.

    jumok train bart_tiny --data.path books/ --data.valid-path other-books/
    """
    return replace(
        t5_tiny(),
        name="bart_tiny",
        model=replace(PRESETS["bart-base"], **_ENCODER_DECODER, mlp_dim=512, max_length=128),
        objective=DenoisingConfig(),
    )


def bart_molecules() -> RunConfig:
    """Molecules as SMILES, letter by letter, by a pre-norm BART as MegaMolBART is: many in a row, each on its own.

    jumok train bart_molecules --data.path qm9.csv
    """
    return replace(
        bart_tiny(),
        name="bart_molecules",
        model=replace(
            PRESETS["megamolbart-style-xsmall"], **_ENCODER_DECODER | {"vocab_size": 64}, mlp_dim=512, max_length=128
        ),
        data=DataConfig(MUST_BE_GIVEN, text_column="smiles", tokenizer="characters", max_length=128, whole=True),
        objective=DenoisingConfig(rate=0.15, permute_sentences=False),
    )


def translation(name: str) -> RunConfig:
    r"""Pairs of sentences, some ten thousand of them: a Transformer, or recurrent networks of its size.

    jumok train transformer-tiny --data.source-path train.en --data.target-path train.de \
        --data.valid-source-path val.en --data.valid-target-path val.de

    Reached on two cores with the 29,000 pairs of Multi30k, English to German, BLEU of test_2016_flickr by four beams:
    transformer-tiny 38.0 in 23 minutes; in 12 lstm-attention-tiny 30.9, and lstm-tiny, without attention, 16.4.
    """
    model = PRESETS[name]
    if not isinstance(model, RecurrentConfig):
        model = replace(model, dropout=0.2)  # published with 0.3, for many more epochs than these
    return RunConfig(
        name=name,
        model=model,
        data=replace(PAIRS, tokenizer="sentencepiece", max_length=64),
        objective=Seq2SeqConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(name="muon", learning_rate=4e-3, warmup_steps=200, b2=0.98, weight_decay=0.01),
        steps=1500 if isinstance(model, RecurrentConfig) else 3000,
        batch_size=32,
        evaluate=EvaluateConfig(every=500),
        sample=SampleConfig(tokens=0),
    )


def smoke() -> RunConfig:
    """The smallest: shows in seconds that everything works together, on one device or on a mesh of fsdp 4 x tensor 2.

    JAX_NUM_CPU_DEVICES=8 jumok train smoke --mesh.fsdp 4 --mesh.tensor 2
    """
    return RunConfig(
        name="smoke",
        model=_llama(num_layers=2, model_dim=64, num_heads=8, num_kv_heads=4, vocab_size=257, max_length=128),
        data=DataConfig(max_length=128),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        steps=50,
        batch_size=8,
        sample=SampleConfig(tokens=40),
    )


def _llama(model_dim: int, **fields: Any) -> DecoderConfig:
    """A model of Llama's architecture, with tied embeddings, as suits a small one."""
    fields |= {"norm": "rms", "activation": "swiglu", "positions": "rope", "use_bias": False}
    return DecoderConfig(model_dim=model_dim, mlp_dim=_swiglu_size(model_dim), **fields)


def _bert(**fields: Any) -> EncoderConfig:
    """A small BERT."""
    sizes: dict[str, Any] = {"num_layers": 2, "model_dim": 128, "num_heads": 4, "vocab_size": 2048, "max_length": 128}
    return EncoderConfig(**sizes | fields)


def _digits(**fields: Any) -> VisionConfig:
    """A small vision transformer for MNIST."""
    return VisionConfig(num_layers=4, model_dim=64, num_heads=4, image_size=28, patch_size=4, channels=1, **fields)


_ENCODER_DECODER: dict[str, Any] = {
    "num_layers": 2,
    "num_decoder_layers": 2,
    "model_dim": 128,
    "num_heads": 4,
    "head_dim": 32,
    "vocab_size": 2048,
    "decoder_start_id": None,
}


def _swiglu_size(model_dim: int) -> int:
    """The width of a gated layer whose three matrices hold about as much as the two of a plain one of 4 model_dim."""
    return -(-8 * model_dim // 3 // 64) * 64


_TRANSLATION = (
    *("transformer-tiny", "lstm-tiny", "lstm-attention-tiny"),
    *("rnn-tiny", "rnn-attention-tiny", "gru-tiny", "gru-attention-tiny"),
)
RECIPES: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "char_shakespeare": char_shakespeare,
    "books": books,
    "smoke": smoke,
    "bert_tiny": bert_tiny,
    "electra_tiny": electra_tiny,
    "distilbert_tiny": distilbert_tiny,
    "classify": classify,
    "vit_mnist": vit_mnist,
    "caption_mnist": caption_mnist,
    "t5_tiny": t5_tiny,
    "bart_tiny": bart_tiny,
    "bart_molecules": bart_molecules,
    **{name: partial(translation, name) for name in _TRANSLATION},
    **PUBLISHED,
}
DEFAULT = "tiny"


def needs(config: RunConfig) -> list[str]:
    """The options that a user has to give before this runs, without "--"."""
    data, learned = config.data, make_objective(config.objective).rows
    teacher = ["objective.teacher"] if isinstance(config.objective, DistillConfig) else []
    if data.path != MUST_BE_GIVEN or (isinstance(data, DataConfig) and (data.mixture or data.source_path)):
        return teacher
    return ["data.source-path", "data.target-path"] if learned == "pairs" else ["data.path", *teacher]


def find_recipe(name: str) -> RunConfig:
    """The run of a recipe's name, of `module:function`, or of a config.json.

    Raises:
        ValueError: there is no such recipe (the nearest is named), or it gives no configuration.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".json"):
        return _read(epath.Path(name))
    if ":" in name:
        config = call_own(name, "recipe")
        if not isinstance(config, RunConfig):
            raise ValueError(f"the recipe {name} must return a RunConfig, got {type(config).__name__}")
        return config
    begun = (recipe for recipe in RECIPES if recipe.startswith(name))  # as gpt2 begins gpt2-124m
    nearest = next(begun, difflib.get_close_matches(name, RECIPES, 1, 0)[0])
    if (of_run := epath.Path(name) / "config.json").exists():
        nearest = str(of_run)
    raise ValueError(
        f"there is no recipe {name!r}; the nearest is {nearest!r}, `jumok recipes` lists all, and module:function or a "
        "config.json do as well"
    )


def _read(path: epath.Path) -> RunConfig:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a configuration: {error}") from None
    config = from_json(RunConfig, json_object(content, str(path)), str(path))
    data = config.data
    paths = [portion.path for portion in data.portions()] if isinstance(data, DataConfig) else []
    for named in (*paths, data.valid_path or ""):
        if names_code(named):
            raise ValueError(f"{path}: data.path names code, {named}, and what a file names is not run; use a recipe")
    return config
