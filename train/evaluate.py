"""The `evaluate` command: perplexity with a receipt."""

from dataclasses import dataclass
from typing import Any, Literal

import tyro

from data.dataset import check_vocabulary, open_sources
from data.shards import prepare_corpus
from data.sources import Source, open_source
from train.console import Console
from train.load import LoadedRun, load_run
from train.mesh import MeshConfig
from train.objectives.table import make_objective
from train.perplexity import DEFINITION, PerplexityMeter


@dataclass(frozen=True)
class TextConfig:
    """Which text is scored."""

    path: str | None = None  # a file, folder or glob; without it the run's own held-out text
    text_column: str = "text"  # the key of the text in .jsonl files


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
    source = _source(run, arguments.data)
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
        corpus = prepare_corpus(source, run.tokenizer, progress)
    if arguments.data.path is None and corpus.digest != run.record["held_out"]:
        raise ValueError(
            f"the held-out text of {run.config.data.path!r} is not what it was when {run.directory} was trained; "
            "name the text with --data.path"
        )
    with console.progress("scoring") as progress:
        score = meter.score(run.params, corpus, run.tokenizer, progress=progress)
    receipt = {
        **score.figures(),
        "documents": corpus.num_documents,
        "window": meter.window,
        "stride": meter.stride,
        "precision": arguments.precision,
        "step": run.step,
        "definition": DEFINITION,
        "digests": {"text": corpus.digest, "tokenizer": run.tokenizer.digest, "weights": run.weights_digest},
    }
    shown = [
        (name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else value)
        for name, value in receipt.items()
        if name not in ("digests", "definition")
    ]
    console.table(f"{run.directory} at step {run.step}", ("", ""), shown)
    console.say(f"definition: {DEFINITION}")
    console.say("digests: " + ", ".join(f"{name} {digest[:12]}" for name, digest in receipt["digests"].items()))
    return receipt


def _source(run: LoadedRun, text: TextConfig) -> Source:
    """The text that is named, or the run's own held-out text."""
    if text.path is not None:
        return open_source(text.path, text.text_column)
    if "held_out" not in run.record:
        raise ValueError(f"{run.directory} was not trained here and has no held-out text; name one with --data.path")
    return open_sources(run.config.data)[1]
