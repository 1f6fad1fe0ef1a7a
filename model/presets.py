"""The explicit tables of families and presets: a new family is a file in model/families/ and a line here."""

import difflib
from typing import Any, Protocol

from model.families import albert, bert, distilbert, electra, gpt2, llama, megatron_bert, palm, roberta
from model.families.weights import Tensor


class Family(Protocol):
    """What a file in model/families/ holds: presets, and the way of its models to and from Hugging Face folders."""

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
}

PRESETS: dict[str, Any] = {name: config for family in FAMILIES.values() for name, config in family.PRESETS.items()}


def family_of(config: Any) -> Family:
    """The family whose Hugging Face architecture expresses `config`. Raises ValueError, saying what each would need."""
    reasons = []
    for family in FAMILIES.values():
        if type(config) is not type(next(iter(family.PRESETS.values()))):
            continue
        obstacles = family.obstacles(config)
        if not obstacles:
            return family
        reasons.append(f"{family.ARCHITECTURES[0]} needs {', '.join(obstacles)}")
    raise ValueError(f"no known architecture expresses this model: {'; '.join(reasons)}")


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
