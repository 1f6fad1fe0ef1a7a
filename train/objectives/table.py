"""The explicit table of objectives: a new one is a file beside this one and a line here."""

from collections.abc import Callable
from typing import Any

from train.objectives.causal_lm import CausalLM, CausalLMConfig
from train.objectives.objective import Objective

OBJECTIVES: dict[type, Callable[[Any], Objective]] = {CausalLMConfig: CausalLM}


def make_objective(config: Any) -> Objective:
    """The objective that a configuration describes."""
    return OBJECTIVES[type(config)](config)
