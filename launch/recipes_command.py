"""`jumok recipes`: what can be trained by name."""

from dataclasses import dataclass
from typing import Any

from model.cost import count_parameters
from model.presets import family_name
from model.structures import kept_config
from train.config import RunConfig
from train.console import Console
from train.objectives.table import name_of
from train.recipes import RECIPES, needs


@dataclass(frozen=True)
class Arguments:
    """Lists every recipe: its family, its objective, its exact number of parameters, and what it needs to be given."""


def main(arguments: Arguments, console: Console) -> list[dict[str, Any]]:
    """The `recipes` command."""
    recipes = [_describe(name, recipe()) for name, recipe in RECIPES.items()]
    rows = [
        [recipe["name"], recipe["family"], recipe["objective"], recipe["parameters"], " ".join(recipe["needs"])]
        for recipe in recipes
    ]
    console.table("", ("recipe", "family", "objective", "parameters", "needs"), rows)
    return recipes


def _describe(name: str, config: RunConfig) -> dict[str, Any]:
    model = kept_config(config.model)
    return {
        "name": name,
        "family": family_name(model),
        "objective": name_of(type(config.objective)),
        "parameters": count_parameters(model),
        "needs": needs(config),
    }
