"""The explicit tables of families and presets: a new family is a file in model/families/ and a line here."""

import difflib
from typing import Any, Protocol

import numpy as np

from model import recurrent
from model.families import (
    albert,
    bart,
    bert,
    distilbert,
    electra,
    gpt2,
    llama,
    mbart,
    megatron_bert,
    palm,
    roberta,
    t5,
    transformer,
    vit,
)
from model.families.weights import Tensor
from model.structures import kept_config


class Family(Protocol):
    """What a file in model/families/ holds: presets, and the way of its models to and from Hugging Face folders.

    Some have more, which `constants_of` and `renamed_in` give for any.
    """

    ARCHITECTURES: tuple[str, ...]  # as in config.json's `architectures`
    MODEL_TYPE: str
    PRESETS: dict[str, Any]  # all of one structure's configurations
    PREFIX: str  # of all tensors but the head's; a file saved from the model without its head lacks it
    COPIES: dict[str, str]  # the tensors that a tied model's file may repeat, and of what
    IGNORED: str  # a pattern of tensors that are not weights

    def weights(self, config: Any) -> tuple[Tensor, ...]:
        """The table of this model's tensors."""
        ...

    def architecture(self, config: Any) -> str:
        """The one of ARCHITECTURES that computes `config`."""
        ...

    def obstacles(self, config: Any) -> list[str]:
        """Why the architecture cannot express `config`: the fields that would have to be otherwise."""
        ...

    def to_hugging_face_config(self, config: Any) -> dict[str, Any]:
        """What a config.json says of this model."""
        ...

    def from_hugging_face_config(self, values: dict[str, Any]) -> Any:
        """The model that a config.json describes."""
        ...


FAMILIES: dict[str, Family] = {
    "gpt2": gpt2,
    "llama": llama,
    "palm": palm,
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "albert": albert,
    "electra": electra,
    "megatron_bert": megatron_bert,
    "transformer": transformer,
    "bart": bart,
    "mbart": mbart,
    "t5": t5,
    "vit": vit,
}

PRESETS: dict[str, Any] = {
    **{name: config for family in FAMILIES.values() for name, config in family.PRESETS.items()},
    **recurrent.PRESETS,
}


def constants_of(family: Family, config: Any) -> dict[str, np.ndarray]:
    """Tensors of a family's files that are no weights of this model, and what each must be."""
    return getattr(family, "constants", lambda config: {})(config)


def renamed_in(family: Family) -> dict[str, str]:
    """Ends of the names of a family's tensors as they were first published, and what they are now."""
    return getattr(family, "RENAMED", {})


def family_of(config: Any) -> Family:
    """The family whose Hugging Face architecture expresses `config`. Raises ValueError, saying what each would need."""
    reasons = []
    for family in FAMILIES.values():
        if not _has_structure(family, config):
            continue
        obstacles = family.obstacles(config)
        if not obstacles:
            return family
        reasons.append(f"{family.ARCHITECTURES[0]} needs {', '.join(obstacles)}")
    if not reasons:
        raise ValueError(
            f"Hugging Face's transformers know no model of this structure ({_structure_name(config)}), so that jumok "
            "alone can use it"
        )
    raise ValueError(f"no known architecture expresses this model: {'; '.join(reasons)}")


def family_name(config: Any) -> str:
    """The name of a model's family, or of its structure where it has none; of two models, that of the one to keep."""
    kept = kept_config(config)
    expressing = (n for n, family in FAMILIES.items() if _has_structure(family, kept) and not family.obstacles(kept))
    return next(expressing, _structure_name(kept))


def _has_structure(family: Family, config: Any) -> bool:
    return type(config) is type(next(iter(family.PRESETS.values())))


def _structure_name(config: Any) -> str:
    return type(config).__module__.rpartition(".")[2]


def family_of_architecture(values: dict[str, Any]) -> Family:
    """The family of a config.json. Raises ValueError for an unknown architecture, naming the nearest that is known."""
    known = {architecture: family for family in FAMILIES.values() for architecture in family.ARCHITECTURES}
    match values.get("architectures"):
        case [str(name)] if name in known:
            return known[name]
        case [str(name)]:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ValueError(
                f"config.json: the architecture {name} is not known; the nearest that is known is {nearest}"
            )
        case other:
            raise ValueError(
                f"config.json: architectures={other} must be a list of one name, such as {next(iter(known))}"
            )
