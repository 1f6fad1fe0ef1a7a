"""The runs of published models, by the names of model/presets.py.

They take over what is published of their training; what is not, or what we do in another way, is said here:

- text is what `--data.path` names, as bytes unless `--data.tokenizer` names a tokenizer; without either, a model of
  any size trains on the embedded text, to try what it needs;
- the learning rate falls over all steps, GPT-3's over the first 260 of its 300 billion tokens, and Luong's from half of
  them on;
- batches do not grow, those of GPT-3, Llama 3 and PaLM did; rows have one length, of BERT's first 900,000 steps 128;
- GPT-2's learning rates are not published, and are those of GPT-3's models of the same size; its run has a length that
  is known to do (300 billion tokens, about thirty times over the text that it was trained on); BART's are RoBERTa's;
- Llama 3.2's small models were distilled from larger ones, and so were DistilBERT and TinyBERT; here they are trained
  on their own (recipe `distilbert_tiny` shows distillation);
- MegaMolBART writes each molecule in many ways; here it is learned as it is written.

None of these was run at its published size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from data.dataset import DataConfig
from data.images import ImagesConfig
from model.generator_discriminator import GeneratorDiscriminatorConfig
from model.presets import PRESETS
from model.recurrent import RecurrentConfig
from train.config import EvaluateConfig, RunConfig, SampleConfig
from train.mesh import MeshConfig
from train.objectives.causal_lm import CausalLMConfig
from train.objectives.classify import ClassifyConfig, ClassifyImagesConfig
from train.objectives.denoising import DenoisingConfig
from train.objectives.masked_lm import MaskedLMConfig
from train.objectives.replaced_token import ReplacedTokenConfig
from train.objectives.sentence_pairs import SentencePairsConfig
from train.objectives.seq2seq import Seq2SeqConfig
from train.objectives.span_corruption import SpanCorruptionConfig
from train.optimizer import OptimizerConfig

MUST_BE_GIVEN = ""
# Lines of two files, nothing put between or behind them.
PAIRS = DataConfig(MUST_BE_GIVEN, prompt="{source}", response="{target}")


@dataclass(frozen=True)
class _Published:
    """How a model was trained: peak learning rate, rows of a batch and tokens of a row, all tokens, warm-up steps."""

    learning_rate: float
    batch_size: int
    length: int
    tokens: float
    warmup_steps: int
    fsdp: bool = False  # whether its state wants to be spread over the devices


_DECODERS = {
    "distilgpt2": _Published(6e-4, 512, 1024, 300e9, 715),
    "gpt2-124m": _Published(6e-4, 512, 1024, 300e9, 715),
    "gpt2-355m": _Published(3e-4, 512, 1024, 300e9, 715),
    "gpt2-774m": _Published(2.5e-4, 512, 1024, 300e9, 715),
    "gpt2-1.5b": _Published(2e-4, 512, 1024, 300e9, 715),
    "gpt3-125m": _Published(6e-4, 256, 2048, 300e9, 715),
    "gpt3-350m": _Published(3e-4, 256, 2048, 300e9, 715),
    "gpt3-760m": _Published(2.5e-4, 256, 2048, 300e9, 715),
    "gpt3-1.3b": _Published(2e-4, 512, 2048, 300e9, 358, fsdp=True),
    "gpt3-2.7b": _Published(1.6e-4, 512, 2048, 300e9, 358, fsdp=True),
    "gpt3-6.7b": _Published(1.2e-4, 1024, 2048, 300e9, 179, fsdp=True),
    "gpt3-13b": _Published(1e-4, 1024, 2048, 300e9, 179, fsdp=True),
    "gpt3-175b": _Published(0.6e-4, 1536, 2048, 300e9, 119, fsdp=True),
    "llama1-7b": _Published(3e-4, 2048, 2048, 1.0e12, 2000, fsdp=True),
    "llama1-13b": _Published(3e-4, 2048, 2048, 1.0e12, 2000, fsdp=True),
    "llama1-33b": _Published(1.5e-4, 2048, 2048, 1.4e12, 2000, fsdp=True),
    "llama1-65b": _Published(1.5e-4, 2048, 2048, 1.4e12, 2000, fsdp=True),
    "llama2-7b": _Published(3e-4, 1024, 4096, 2.0e12, 2000, fsdp=True),
    "llama2-13b": _Published(3e-4, 1024, 4096, 2.0e12, 2000, fsdp=True),
    "llama2-70b": _Published(1.5e-4, 1024, 4096, 2.0e12, 2000, fsdp=True),
    "llama3-8b": _Published(3e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3-70b": _Published(1.5e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3.1-8b": _Published(3e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3.1-70b": _Published(1.5e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "llama3.1-405b": _Published(8e-5, 2048, 8192, 15e12, 8000, fsdp=True),
    "llama3.2-1b": _Published(3e-4, 1024, 8192, 9e12, 2000, fsdp=True),
    "llama3.2-3b": _Published(3e-4, 1024, 8192, 9e12, 2000, fsdp=True),
    "llama3.3-70b": _Published(1.5e-4, 1024, 8192, 15e12, 2000, fsdp=True),
    "palm-8b": _Published(1e-2, 512, 2048, 780e9, 10_000, fsdp=True),
    "palm-62b": _Published(1e-2, 512, 2048, 795e9, 10_000, fsdp=True),
    "palm-540b": _Published(1e-2, 2048, 2048, 780e9, 10_000, fsdp=True),
}

_ENCODERS = {
    "bert-base-uncased": _Published(1e-4, 256, 512, 1e6 * 256 * 512, 10_000),
    "bert-base-cased": _Published(1e-4, 256, 512, 1e6 * 256 * 512, 10_000),
    "bert-large-uncased": _Published(1e-4, 256, 512, 1e6 * 256 * 512, 10_000),
    "bert-large-cased": _Published(1e-4, 256, 512, 1e6 * 256 * 512, 10_000),
    "tinybert-4": _Published(1e-4, 256, 128, 1e6 * 256 * 128, 10_000),
    "tinybert-6": _Published(1e-4, 256, 128, 1e6 * 256 * 128, 10_000),
    "roberta-base": _Published(6e-4, 8192, 512, 5e5 * 8192 * 512, 24_000),
    "roberta-large": _Published(4e-4, 8192, 512, 5e5 * 8192 * 512, 30_000),
    "distilbert-base-uncased": _Published(5e-4, 4096, 512, 1e5 * 4096 * 512, 5_000),
    "albert-base": _Published(1.76e-3, 4096, 512, 125_000 * 4096 * 512, 3_125),
    "albert-large": _Published(1.76e-3, 4096, 512, 125_000 * 4096 * 512, 3_125),
    "albert-xlarge": _Published(1.76e-3, 4096, 512, 125_000 * 4096 * 512, 3_125),
    "albert-xxlarge": _Published(1.76e-3, 4096, 512, 125_000 * 4096 * 512, 3_125),
    "electra-small-discriminator": _Published(5e-4, 128, 128, 1e6 * 128 * 128, 10_000),
    "electra-base-discriminator": _Published(2e-4, 256, 512, 766_000 * 256 * 512, 10_000),
    "electra-large-discriminator": _Published(2e-4, 2048, 512, 4e5 * 2048 * 512, 10_000),
    "electra-small-generator": _Published(5e-4, 128, 128, 1e6 * 128 * 128, 10_000),
    "electra-small-generator-quarter": _Published(5e-4, 128, 128, 1e6 * 128 * 128, 10_000),
    "electra-base-generator": _Published(2e-4, 256, 512, 766_000 * 256 * 512, 10_000),
    "electra-large-generator": _Published(2e-4, 2048, 512, 4e5 * 2048 * 512, 10_000),
    "megatron-bert-345m": _Published(1e-4, 1024, 512, 1e6 * 1024 * 512, 10_000),
    "gatortron-base": _Published(1e-4, 1024, 512, 1e6 * 1024 * 512, 10_000, fsdp=True),
    "gatortron-medium": _Published(1e-4, 1024, 512, 1e6 * 1024 * 512, 10_000, fsdp=True),
    "gatortron-large": _Published(1e-4, 1024, 512, 1e6 * 1024 * 512, 10_000, fsdp=True),
}
_GENERATORS = {  # which ELECTRA's discriminators were trained with
    "electra-small-discriminator": "electra-small-generator-quarter",
    "electra-base-discriminator": "electra-base-generator",
    "electra-large-discriminator": "electra-large-generator",
}

# Tokens are those of sources.
_ENCODER_DECODERS = {
    "transformer-base": _Published(6.99e-4, 128, 256, 1e5 * 128 * 256, 4_000),  # about 25,000 tokens and as many again
    "transformer-big": _Published(4.94e-4, 128, 256, 3e5 * 128 * 256, 4_000),
    "luong": _Published(1.0, 256, 51, 2e5 * 256 * 51, 1),
    "luong-feeding": _Published(1.0, 256, 51, 2e5 * 256 * 51, 1),
    "bart-base": _Published(6e-4, 8192, 512, 5e5 * 8192 * 512, 24_000),
    "bart-large": _Published(4e-4, 8192, 512, 5e5 * 8192 * 512, 30_000),
    "megamolbart-style-xsmall": _Published(1e-3, 2048, 512, 5e5 * 2048 * 512, 8_000),
    "megamolbart-style-small": _Published(1e-3, 2048, 512, 5e5 * 2048 * 512, 8_000),
    "megamolbart-style-large": _Published(1e-3, 2048, 512, 5e5 * 2048 * 512, 8_000, fsdp=True),
    "megamolbart-style-card": _Published(1e-3, 2048, 512, 5e5 * 2048 * 512, 8_000),
    "t5-small": _Published(1e-2, 256, 512, 2**19 * 128 * 512, 10_000),
    "t5-base": _Published(1e-2, 256, 512, 2**19 * 128 * 512, 10_000),
    "t5-large": _Published(1e-2, 256, 512, 2**19 * 128 * 512, 10_000),
    "t5-3b": _Published(1e-2, 2048, 512, 2**19 * 2048 * 512, 10_000, fsdp=True),
    "t5-11b": _Published(1e-2, 2048, 512, 2**19 * 2048 * 512, 10_000, fsdp=True),
    "t5-v1.1-small": _Published(1e-2, 2048, 512, 2**19 * 2048 * 512, 10_000),
}

# Adafactor without factors; its rate is at the peak for `warmup_steps`, then falls with the root of the steps.
_PALM_OPTIMIZER = OptimizerConfig(
    name="adafactor",
    schedule="rsqrt",
    factored=False,
    b1=0.9,
    weight_decay=1.0,
    weight_decay_power=2.0,
    clip_norm=1.0,
)
_T5_OPTIMIZER = OptimizerConfig(name="adafactor", schedule="rsqrt")
_BERT_OPTIMIZER = OptimizerConfig(schedule="linear", final_fraction=0.0, b2=0.999, epsilon=1e-6, weight_decay=0.01)
_ROBERTA_OPTIMIZER = replace(_BERT_OPTIMIZER, b2=0.98)
_ALBERT_OPTIMIZER = OptimizerConfig(
    name="lamb", decayed=("matrix", "embedding"), schedule="linear", final_fraction=0.0, weight_decay=0.01
)
_NOAM = OptimizerConfig(schedule="noam", b2=0.98, epsilon=1e-9, weight_decay=0.0, clip_norm=0.0)
_LUONG_OPTIMIZER = OptimizerConfig(
    name="sgd", schedule="wsd", decay_fraction=0.5, momentum=0.0, weight_decay=0.0, clip_norm=5.0
)


def _decoder(name: str) -> RunConfig:
    is_palm = name.startswith("palm")
    return _run(
        name,
        _DECODERS[name],
        PRESETS[name],
        CausalLMConfig(z_loss=1e-4) if is_palm else CausalLMConfig(),
        _PALM_OPTIMIZER if is_palm else OptimizerConfig(),
        sample=SampleConfig(),
    )


def _encoder(name: str) -> RunConfig:
    model, objective, optimizer = PRESETS[name], MaskedLMConfig(), _BERT_OPTIMIZER
    if name in _GENERATORS:
        objective = ReplacedTokenConfig()
        generator = PRESETS[_GENERATORS[name]]
        model = GeneratorDiscriminatorConfig(generator=generator, discriminator=model)
    elif name.startswith("albert"):
        objective, optimizer = SentencePairsConfig(relation="order"), _ALBERT_OPTIMIZER
    elif model.head == "pretraining":
        objective = SentencePairsConfig(relation="next")
    elif name.startswith("roberta"):
        optimizer = _ROBERTA_OPTIMIZER
    return _run(name, _ENCODERS[name], model, objective, optimizer)


def _encoder_decoder(name: str) -> RunConfig:
    model, run = PRESETS[name], _ENCODER_DECODERS[name]
    pairs = replace(PAIRS, max_length=run.length)
    if name.startswith("transformer"):
        return _run(name, run, model, Seq2SeqConfig(label_smoothing=0.1), _NOAM, pairs)
    if isinstance(model, RecurrentConfig):
        return _run(name, run, model, Seq2SeqConfig(), _LUONG_OPTIMIZER, pairs)
    if name.startswith("t5"):
        return _run(name, run, model, SpanCorruptionConfig(), _T5_OPTIMIZER)
    if name.startswith("bart"):
        return _run(name, run, model, DenoisingConfig(), _ROBERTA_OPTIMIZER)
    molecules = DataConfig(MUST_BE_GIVEN, text_column="smiles", whole=True, max_length=run.length)
    objective = DenoisingConfig(rate=0.1, permute_sentences=False)
    return _run(name, run, model, objective, replace(_NOAM, b2=0.999, weight_decay=0.01, clip_norm=1.0), molecules)


def _run(
    name: str,
    run: _Published,
    model: Any,
    objective: Any,
    optimizer: OptimizerConfig,
    data: DataConfig | None = None,
    sample: SampleConfig | None = None,
) -> RunConfig:
    """The whole run, of text unless other data are given, and without a sample unless one is."""
    return RunConfig(
        name=name,
        model=replace(model, remat="full") if run.fsdp else model,
        data=data or DataConfig(max_length=run.length),
        optimizer=replace(optimizer, learning_rate=run.learning_rate, warmup_steps=run.warmup_steps),
        objective=objective,
        mesh=MeshConfig(data=1, fsdp=-1) if run.fsdp else MeshConfig(),
        steps=round(run.tokens / (run.batch_size * run.length)),
        batch_size=run.batch_size,
        evaluate=EvaluateConfig(every=1000, tokens=1_000_000),
        sample=sample or SampleConfig(tokens=0),
    )


def _vision(name: str) -> RunConfig:
    """ImageNet's 1.28 million images, 300 times (Dosovitskiy et al. 2020, trained from scratch)."""
    return RunConfig(
        name=name,
        model=PRESETS[name],
        data=ImagesConfig(MUST_BE_GIVEN),
        objective=ClassifyImagesConfig(),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10_000, b2=0.999, weight_decay=0.3),
        steps=300 * 1_281_167 // 4096,
        batch_size=4096,
        evaluate=EvaluateConfig(every=1000),
        sample=SampleConfig(tokens=0),
    )


def _finbert(name: str) -> RunConfig:
    """Four epochs of the Financial PhraseBank's 4,846 sentences (Araci 2019), from BERT's weights by --from."""
    return RunConfig(
        name=name,
        model=PRESETS[name],
        data=DataConfig(MUST_BE_GIVEN, label_column="label", max_length=64, too_long="cut"),
        objective=ClassifyConfig(),
        optimizer=replace(_BERT_OPTIMIZER, learning_rate=2e-5, warmup_steps=120),
        steps=4 * 4846 // 32,
        batch_size=32,
        sample=SampleConfig(tokens=0),
    )


PUBLISHED: dict[str, Callable[[], RunConfig]] = {
    name: partial(make, name)
    for make, names in (
        (_decoder, _DECODERS),
        (_encoder, _ENCODERS),
        (_finbert, ("finbert-prosus", "finbert-yiyanghkust")),
        (_encoder_decoder, _ENCODER_DECODERS),
        (_vision, ("vit-ti16", "vit-s16", "vit-b16", "vit-b32", "vit-l16", "vit-h14", "vit-b16-384", "vit-l32-384")),
    )
    for name in names
}
"""What makes the run of each published model, as in

    jumok train gpt2-124m --data.path "text/*.jsonl" --data.tokenizer tokenizer/
"""
