"""The `evaluate` command: perplexity with a receipt."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import tyro

from data.dataset import check_vocabulary, prepare_held_out, prepare_text
from data.prepare import Progress
from data.shards import Corpus
from train.console import Console
from train.load import LoadedRun, load_run
from train.mesh import MeshConfig
from train.objectives.table import make_objective
from train.perplexity import PerplexityMeter


@dataclass(frozen=True)
class TextConfig:
    """Which text is scored."""

    path: str | None = None  # as --data.path of `jumok train`; without it the run's own held-out text
    source_path: str | None = None  # of parallel files, the lines that are given; with target_path, in place of path
    target_path: str | None = None  # of parallel files, the lines that are scored
    text_column: str | None = None  # the column of the text in records; without it the run's
    suffixes: tuple[str, ...] = ()  # the files of a folder that are read, such as .py; without them the run's


@dataclass(frozen=True)
class Arguments:
    """Scores text with a trained model: perplexity with a receipt that says exactly what was measured.

    Attributes:
        run: RUN (its newest checkpoint), RUN/checkpoints/STEP or RUN@best.
        data: which text.
        window: tokens of context at most; by default the length of the run's rows.
        stride: tokens from one window to the next; by default the window, so that windows do not overlap.
        batch_size: windows at a time; the figures do not depend on it.
        precision: compute dtype; the figures are comparable only in float32.
        mesh: where the model lies; the figures do not depend on it.
    """

    run: tyro.conf.Positional[str]
    data: TextConfig = TextConfig()
    window: int | None = None
    stride: int | None = None
    batch_size: int = 16
    precision: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig = MeshConfig()


def main(arguments: Arguments, console: Console) -> dict[str, Any]:
    """Scores the text, shows the figures, and returns them as the receipt."""
    run = load_run(arguments.run, arguments.mesh, console.say)
    check_vocabulary(run.tokenizer, run.config.model.vocab_size)
    longest = min(run.config.data.max_length, run.config.model.max_length)
    window = longest if arguments.window is None else arguments.window
    meter = PerplexityMeter(
        run.plan,
        make_objective(run.config.objective),
        run.mesh,
        window=window,
        stride=window if arguments.stride is None else arguments.stride,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
    )
    with console.progress("reading the text") as progress:
        corpus = _corpus(run, arguments.data, progress)
    with console.progress("scoring") as progress:
        score = meter.score(run.params, corpus, run.tokenizer, progress=progress)
    receipt = {
        **score.figures(),
        "documents": corpus.num_documents,
        "window": meter.window,
        "stride": meter.stride,
        "precision": arguments.precision,
        "step": run.step,
        "definition": meter.objective.definition,
        "digests": {"text": corpus.digest, "tokenizer": run.tokenizer.digest, "weights": run.weights_digest},
    }
    shown = [
        (name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else value)
        for name, value in receipt.items()
        if name not in ("digests", "definition")
    ]
    console.table(f"{run.directory} at step {run.step}", ("", ""), shown)
    console.say(f"definition: {meter.objective.definition}")
    console.say("digests: " + ", ".join(f"{name} {digest[:12]}" for name, digest in receipt["digests"].items()))
    return receipt


def _corpus(run: LoadedRun, text: TextConfig, progress: Progress) -> Corpus:
    """The text that is named, read as the run reads, or the run's own held-out text."""
    data = run.config.data
    if text.path is None and text.source_path is None:
        for name in ("target_path", "text_column", "suffixes"):
            if getattr(text, name):
                option = name.replace("_", "-")
                raise ValueError(
                    f"--data.{option} says how a text is read, and none is named; name it with --data.path"
                )
        if "held_out" not in run.record:
            raise ValueError(
                f"{run.directory} was not trained here and has no held-out text; name one with --data.path"
            )
        corpus = prepare_held_out(data, run.tokenizer, progress)
        if corpus.digest != run.record["held_out"]:
            raise ValueError(
                f"the held-out text of {data.names()} is not what it was when {run.directory} was trained; "
                "name the text with --data.path"
            )
        return corpus
    named = replace(
        data,
        path=text.path or "",
        mixture=(),
        too_long="refuse",
        source_path=text.source_path,
        target_path=text.target_path,
        text_column=text.text_column or data.text_column,
        suffixes=text.suffixes or data.suffixes,
    )
    return prepare_text(named, run.tokenizer, progress)
