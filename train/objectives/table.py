"""The explicit table of objectives: a new one is a file beside this one and a line here."""

from collections.abc import Callable
from typing import Any

from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from train.objectives.causal_lm import CausalLM, CausalLMConfig
from train.objectives.masked_lm import MaskedLM, MaskedLMConfig
from train.objectives.objective import Objective

ObjectiveConfig = CausalLMConfig | MaskedLMConfig

OBJECTIVES: dict[type, Callable[[Any], Objective]] = {CausalLMConfig: CausalLM, MaskedLMConfig: MaskedLM}

# The objective that a model of each structure is trained by, where none is named.
USUAL: dict[type, Any] = {DecoderConfig: CausalLMConfig(), EncoderConfig: MaskedLMConfig()}


def make_objective(config: Any) -> Objective:
    """The objective that a configuration describes."""
    return OBJECTIVES[type(config)](config)


def check_model(objective: Any, model: Any) -> None:
    """Refuses a model that an objective can't train; raises ValueError."""
    usual = type(USUAL[type(model)])
    if type(objective) is not usual:
        raise ValueError(
            f"the objective {name_of(type(objective))} is not for this model ({type(model).__name__}), which learns by "
            f"{name_of(usual)}"
        )
    if isinstance(model, EncoderConfig) and not model.predicts_tokens:
        raise ValueError(f"model.head={model.head} predicts no tokens; masked_lm needs --model.head masked_lm")


def name_of(cls: type) -> str:
    """An objective's name, that of its file."""
    return cls.__module__.rpartition(".")[2]
