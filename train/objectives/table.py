"""The explicit table of objectives: a new one is a file beside this one and a line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from data.images import ImagesConfig
from model.decoder import DecoderConfig
from model.distillation import DistillationConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.generator_discriminator import GeneratorDiscriminatorConfig
from model.image_decoder import ImageDecoderConfig
from model.recurrent import RecurrentConfig
from model.vision import VisionConfig
from train.objectives.caption import Caption, CaptionConfig
from train.objectives.causal_lm import CausalLM, CausalLMConfig
from train.objectives.classify import Classify, ClassifyConfig, ClassifyImages, ClassifyImagesConfig
from train.objectives.denoising import Denoising, DenoisingConfig
from train.objectives.distill import Distill, DistillConfig
from train.objectives.masked_lm import MaskedLM, MaskedLMConfig
from train.objectives.objective import RowObjective, WindowObjective
from train.objectives.replaced_token import ReplacedToken, ReplacedTokenConfig
from train.objectives.sentence_pairs import SentencePairs, SentencePairsConfig
from train.objectives.seq2seq import Seq2Seq, Seq2SeqConfig
from train.objectives.span_corruption import SpanCorruption, SpanCorruptionConfig

ObjectiveConfig = (
    CausalLMConfig
    | MaskedLMConfig
    | SentencePairsConfig
    | ReplacedTokenConfig
    | DistillConfig
    | Seq2SeqConfig
    | SpanCorruptionConfig
    | DenoisingConfig
    | ClassifyConfig
    | ClassifyImagesConfig
    | CaptionConfig
)


class Entry(NamedTuple):
    """An objective: its class, the structures of models that it trains, and of these the heads that it needs."""

    make: Callable[[Any], WindowObjective | RowObjective]
    models: tuple[type, ...]
    heads: tuple[str, ...] = ()


OBJECTIVES: dict[type, Entry] = {
    CausalLMConfig: Entry(CausalLM, (DecoderConfig,)),
    MaskedLMConfig: Entry(MaskedLM, (EncoderConfig,), ("masked_lm", "pretraining")),
    SentencePairsConfig: Entry(SentencePairs, (EncoderConfig,), ("pretraining",)),
    ReplacedTokenConfig: Entry(ReplacedToken, (GeneratorDiscriminatorConfig,)),
    DistillConfig: Entry(Distill, (DistillationConfig,)),
    Seq2SeqConfig: Entry(Seq2Seq, (EncoderDecoderConfig, RecurrentConfig)),
    SpanCorruptionConfig: Entry(SpanCorruption, (EncoderDecoderConfig, RecurrentConfig)),
    DenoisingConfig: Entry(Denoising, (EncoderDecoderConfig, RecurrentConfig)),
    ClassifyConfig: Entry(Classify, (EncoderConfig,), ("sequence_classification",)),
    ClassifyImagesConfig: Entry(ClassifyImages, (VisionConfig,), ("classification",)),
    CaptionConfig: Entry(Caption, (ImageDecoderConfig,)),
}


def usual_objective(model: Any) -> Any:
    """The objective that a model is trained by where none is named: the first for its head, or for its structure."""
    of_structure = [(config, entry) for config, entry in OBJECTIVES.items() if isinstance(model, entry.models)]
    return next((config for config, entry in of_structure if fits(entry, model)), of_structure[0][0])()


def make_objective(config: Any) -> WindowObjective | RowObjective:
    """The objective that a configuration describes."""
    return OBJECTIVES[type(config)].make(config)


def fits(entry: Entry, model: Any) -> bool:
    """Whether an objective can train a model."""
    return isinstance(model, entry.models) and (not entry.heads or model.head in entry.heads)


def check_model(objective: Any, model: Any) -> None:
    """Refuses a model that an objective can't train; raises ValueError."""
    entry = OBJECTIVES[type(objective)]
    if fits(entry, model):
        if isinstance(objective, SentencePairsConfig | DistillConfig):
            objective.check(model)
        return
    if isinstance(model, entry.models):
        raise ValueError(
            f"model.head={model.head} is not what {name_of(type(objective))} trains; pass --model.head "
            f"{' or '.join(entry.heads)}"
        )
    known = [name_of(config) for config, other in OBJECTIVES.items() if isinstance(model, other.models)]
    raise ValueError(
        f"the objective {name_of(type(objective))} is not for this model ({type(model).__name__}), which learns by "
        f"{' or '.join(dict.fromkeys(known))}"
    )


def check_data(objective: Any, data: Any) -> None:
    """Refuses data that an objective can't learn from; raises ValueError."""
    name, rows = name_of(type(objective)), make_objective(objective).rows
    if isinstance(data, ImagesConfig) != (rows in ("images", "captions")):
        raise ValueError(f"the objective {name} learns from {rows}; take a recipe whose data are that")
    if isinstance(data, ImagesConfig):
        if (rows == "captions") != bool(data.tokenizer):
            ways = ("writes names", "pass --data.tokenizer bytes")
            others = ("writes nothing", "leave --data.tokenizer out")
            says, remedy = ways if rows == "captions" else others
            raise ValueError(f"the objective {name} {says}; {remedy}")
        return
    if data.pairs and isinstance(objective, SpanCorruptionConfig | DenoisingConfig):
        raise ValueError(
            f"the objective {name} makes pairs of plain text, and these data are pairs; take a recipe that learns from "
            "pairs, or give text with --data.path"
        )
    if rows == "pairs" and not data.pairs:
        raise ValueError(
            f"the objective {name} learns from pairs; pass --data.source-path and --data.target-path, or "
            "--data.prompt and --data.response"
        )
    if (rows == "labelled") != bool(data.label_column):
        ways = ("needs the class of each text", "pass --data.label-column NAME")
        others = ("has no use for classes", "leave --data.label-column out")
        says, remedy = ways if rows == "labelled" else others
        raise ValueError(f"the objective {name} {says}; {remedy}")


def name_of(cls: type) -> str:
    """An objective's name, that of its file."""
    return cls.__module__.rpartition(".")[2]
