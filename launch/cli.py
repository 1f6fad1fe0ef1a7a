"""`jumok COMMAND ...`: the table of commands. What one imports is imported when it runs."""

import importlib.metadata
import sys

from train.command import TRAIN, Command, dispatch

COMMANDS: dict[str, Command] = {
    **TRAIN,
    "evaluate": Command("train.evaluate:main", "score held-out data with a run, with a receipt"),
    "generate": Command("train.generate:main", "continue, translate or fill in text with a run"),
    "export": Command("train.exchange:export_main", "write a run as a Hugging Face folder, verified"),
    "import": Command("train.exchange:import_main", "read a Hugging Face folder as a run, verified"),
    "report": Command("launch.report_command:main", "write the page of a run, RUN/report.html, anew"),
    "data prepare": Command("launch.data_command:prepare", "tokenize a recipe's text into the cache, before it trains"),
    "data show": Command("launch.show_command:main", "show the rows that a run sees at a position, decoded"),
    "tokenizer train": Command("launch.data_command:train_tokenizer", "make a SentencePiece tokenizer from text"),
    "tokenizer show": Command("launch.data_command:show_tokenizer", "show how a text is cut into tokens"),
    "recipes": Command("launch.recipes_command:main", "list the recipes, with their numbers of parameters"),
    "devices": Command("launch.devices:main", "show what JAX sees: devices, memory, versions"),
}


def main() -> None:
    """The `jumok` program."""
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"jumok {importlib.metadata.version('jumok')}")
        return
    sys.exit(dispatch(words, COMMANDS))
