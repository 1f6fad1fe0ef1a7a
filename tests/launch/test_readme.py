"""What the README tells people to type is understood, and is a run that can be."""

import re
import shlex
from pathlib import Path

import pytest

from launch.cli import COMMANDS
from train.config import validate
from train.options import parse
from train.train import main

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
TRAINING = re.findall(r"^(?:\w+=\w+ )*jumok train (.*)$", README, re.MULTILINE)


@pytest.mark.core
@pytest.mark.parametrize("line", TRAINING)
def test_commands_that_train(line: str):
    words = ["x" if word == "..." else word for word in shlex.split(line, comments=True)]
    if "--from" in words:
        words[words.index("--from") + 1] = "a run"  # whose model is not looked at here
    validate(parse(main, words, "train").arguments)


def test_there_are_such_commands_and_all_commands_exist():
    assert len(TRAINING) > 5
    named = set(re.findall(r"^(?:\w+=\w+ )*jumok ([a-z]+(?: (?:prepare|show))?)\b", README, re.MULTILINE))
    assert len(named) > 5
    assert named <= set(COMMANDS)
