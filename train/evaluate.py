"""The `evaluate` command: the figures that a run's objective is measured by, with a receipt."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import tyro
from etils import epath

from data.dataset import DataConfig, Dataset, check_vocabulary, prepare_held_out, prepare_text
from data.images import ImageDataset, ImagesConfig
from data.progress import Progress
from model.beam import Beam
from train.console import Console
from train.evaluate_translations import draw_by_length, score_translations
from train.load import LoadedRun, load_run, preparation_of
from train.mesh import MeshConfig
from train.objectives.objective import RowObjective, WindowObjective
from train.objectives.table import OBJECTIVES, check_data, fits, make_objective
from train.options import refuse_given
from train.perplexity import PerplexityMeter
from train.rows_meter import RowsMeter
from train.translate import Translator
from train.translation_metrics import MISSING, is_installed

_OF_TRANSLATIONS = ("sentences", "num_beams", "length_penalty", "picture")


@dataclass(frozen=True)
class HeldOutConfig:
    """Which data are scored."""

    path: str | None = None  # as --data.path of `jumok train`; without it the run's own held-out data
    source_path: str | None = None  # of parallel files, the lines that are given; with target_path, in place of path
    target_path: str | None = None  # of parallel files, the lines that are scored
    text_column: str | None = None  # the column of the text in records; without it the run's
    label_column: str | None = None  # the column of the class of each text; without it the run's
    prompt: str | None = None  # with response, of records, or of pairs of lines: as --data.prompt of `jumok train`
    response: str | None = None  # the template of what is scored; without it the run's
    label_path: str | None = None  # of images in an IDX file, that of their labels, where it is not beside them
    suffixes: tuple[str, ...] = ()  # the files of a folder that are read, such as .py; without them the run's
    max_length: int | None = None  # tokens a row, where the run scores rows; without it the run's
    target_length: int | None = None  # tokens of the target in a row; without it the run's
    too_long: Literal["refuse", "drop", "cut"] | None = None  # what has more; without it as the run has it

    @property
    def is_named(self) -> bool:
        """Whether there are any, in place of the run's own."""
        return bool(self.path or self.source_path)


@dataclass(frozen=True)
class Arguments:
    """Scores data with a trained model, with a receipt that says exactly what was measured.

    That is perplexity, accuracy, or whatever the run's objective is measured by; of translations BLEU and chrF, too.

    Attributes:
        run: RUN (its newest checkpoint), RUN/checkpoints/STEP or RUN@best.
        data: which data.
        window: tokens of context at most, of perplexity in windows; by default the length of the run's rows.
        stride: tokens from one window to the next; by default the window, so that windows do not overlap.
        batch_size: windows, rows or sources at a time; the figures do not depend on it.
        sentences: only so many are translated, the first ones.
        num_beams: hypotheses of a translation that are kept; 1 is greedy.
        length_penalty: with more of it, longer translations win (Wu et al. 2016); 0 for none.
        against: other runs, scored on the same data.
        picture: an SVG file to write: BLEU by source length, a line for each run.
        precision: compute dtype; the figures are comparable only in float32.
        mesh: where the model lies; the figures do not depend on it.
    """

    run: tyro.conf.Positional[str]
    data: HeldOutConfig = HeldOutConfig()
    window: int | None = None
    stride: int | None = None
    batch_size: int = 16
    sentences: int | None = None
    num_beams: int = Beam.num_beams
    length_penalty: float = Beam.length_penalty
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN")] = ()
    picture: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig = MeshConfig()


def main(arguments: Arguments, console: Console) -> dict[str, Any]:
    """Scores the data, shows the figures, and returns them as the receipt."""
    picture = epath.Path(arguments.picture) if arguments.picture else None
    if picture and not picture.parent.is_dir():
        raise ValueError(f"there is no folder for the picture {picture}; make it, or name another")
    if arguments.sentences is not None and arguments.sentences < 1:
        raise ValueError(f"sentences={arguments.sentences} must be at least 1")
    receipt = _score(arguments, console)
    others = []
    for run in arguments.against:
        other = _score(replace(arguments, run=run), console)
        if not _same_data(receipt["digests"], other["digests"], arguments.data.is_named):
            raise ValueError(
                f"{arguments.run} and {run} were scored on different data; name the same for both with "
                "--data.source-path and --data.target-path, or --data.path"
            )
        others.append({"run": run, **other})
    scored = {arguments.run: receipt} | {other["run"]: other for other in others}
    if others:
        _compare(scored, console)
    if picture:
        draw_by_length({run: each["by_length"] for run, each in scored.items()}, picture)
        console.say(f"the picture is in {picture}")
    return receipt | ({"against": others} if others else {})


def _score(arguments: Arguments, console: Console) -> dict[str, Any]:
    """The receipt of one run."""
    run = load_run(arguments.run, arguments.mesh, console.say)
    model: Any = run.config.model
    if not fits(OBJECTIVES[type(run.config.objective)], model):  # of a run that was imported
        raise ValueError(
            f"{run.directory} holds a model with the head {model.head}, which has nothing that is scored; train it "
            f"with a recipe, --from {run.directory}, and score that run"
        )
    objective = make_objective(run.config.objective)
    translates = objective.rows == "pairs"
    if not translates:
        refuse_given(arguments, _OF_TRANSLATIONS, f"is about translations, and {run.directory} translates nothing")
    if arguments.picture and not is_installed():
        raise ValueError(MISSING)
    if isinstance(objective, WindowObjective):
        dataset, figures = _score_windows(run, objective, arguments, console)
    else:
        dataset, figures = _score_rows(run, objective, arguments, console)
    digests = {"text" if isinstance(dataset, Dataset) else "images": dataset.valid.digest}
    if dataset.tokenizer:
        digests["tokenizer"] = dataset.tokenizer.digest
    if translates and isinstance(dataset, Dataset):
        of_translations, digest = _score_translations(run, dataset, arguments, console)
        figures, digests = figures | of_translations, digests | digest
    receipt = {
        **figures,
        "precision": arguments.precision,
        "step": run.step,
        "definition": objective.definition,
        "digests": digests | {"weights": run.weights_digest},
    }
    shown = [
        (name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else value)
        for name, value in receipt.items()
        if isinstance(value, int | float | str) and name != "definition"
    ]
    console.table(f"{run.directory} at step {run.step}", ("", ""), shown)
    for name, words in {"definition": objective.definition, **receipt.get("signatures", {})}.items():
        console.say(f"{name}: {words}")
    console.say("digests: " + ", ".join(f"{name} {digest[:12]}" for name, digest in receipt["digests"].items()))
    return receipt


def _same_data(digests: Mapping[str, str], others: Mapping[str, str], is_named: bool) -> bool:
    """Whether two runs were scored on the same data: what was named for both, or has the same digest."""
    for name in ("references", "images"):
        if name in digests:
            return digests[name] == others.get(name)
    return is_named or digests["text"] == others.get("text")


def _compare(receipts: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Shows the figures that all runs have, side by side."""
    first, *others = receipts.values()
    names = [name for name, value in first.items() if isinstance(value, float) and all(name in each for each in others)]
    rows = [(run, *(f"{each[name]:,.4f}" for name in names)) for run, each in receipts.items()]
    console.table("", ("run", *(name.replace("_", " ") for name in names)), rows)


def _score_windows(
    run: LoadedRun, objective: WindowObjective, arguments: Arguments, console: Console
) -> tuple[Dataset, dict[str, Any]]:
    """Perplexity of text in windows."""
    longest = min(run.config.data.lengths[0], run.plan.config.max_length)
    window = longest if arguments.window is None else arguments.window
    meter = PerplexityMeter(
        run.plan,
        objective,
        run.mesh,
        window=window,
        stride=window if arguments.stride is None else arguments.stride,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
    )
    dataset = _dataset(run, arguments.data, console)
    assert isinstance(dataset, Dataset)
    with console.progress("scoring") as progress:
        score = meter.score(run.params, dataset.valid, dataset.tokenizer, progress=progress)
    counts = {"documents": dataset.valid.num_documents, "window": meter.window, "stride": meter.stride}
    return dataset, score.figures() | counts


def _score_rows(
    run: LoadedRun, objective: RowObjective, arguments: Arguments, console: Console
) -> tuple[Dataset | ImageDataset, dict[str, Any]]:
    """What the objective reports of rows of text or of images."""
    refuse_given(arguments, ("window", "stride"), f"is for text in windows, and {run.directory} is scored by rows")
    meter = RowsMeter(run.plan, objective, run.mesh, batch_size=arguments.batch_size, precision=arguments.precision)
    dataset = _dataset(run, arguments.data, console)
    rows, prepare = dataset.held_out_rows(objective.rows), preparation_of(objective, dataset)
    with console.progress("scoring") as progress:
        figures = meter.score(run.params, rows, prepare, progress=progress)
    return dataset, figures | ({"left_out": rows.left_out} if rows.left_out else {})


def _score_translations(
    run: LoadedRun, dataset: Dataset, arguments: Arguments, console: Console
) -> tuple[dict[str, Any], dict[str, str]]:
    """BLEU and chrF, and the digest of the references; without sacrebleu nothing but how to get it."""
    if not is_installed():
        console.say(MISSING)
        return {}, {}
    figures, digest = score_translations(
        Translator(run.plan, run.params, dataset.tokenizer, run.mesh, arguments.precision),
        dataset,
        Beam(arguments.num_beams, arguments.length_penalty),
        console,
        batch_size=arguments.batch_size,
        sentences=arguments.sentences,
        allow_code=dataset.config is not run.config.data,
    )
    return figures, {"references": digest}


def _dataset(run: LoadedRun, named: HeldOutConfig, console: Console) -> Dataset | ImageDataset:
    """What is named, or the run's own, as the held-out data of a dataset."""
    data = run.config.data
    fields_of_data = {field.name for field in fields(data)}
    for field in fields(named):
        if getattr(named, field.name) and field.name not in fields_of_data:
            kind = "images" if isinstance(data, ImagesConfig) else "text"
            option = field.name.replace("_", "-")
            raise ValueError(f"--data.{option} is not for {kind}, which {run.directory} is scored on; leave it out")
    if not named.is_named and (options := [field.name for field in fields(named) if getattr(named, field.name)]):
        option = options[0].replace("_", "-")
        raise ValueError(f"--data.{option} says how data are read, and none are named; name them with --data.path")
    if not named.is_named and "held_out" not in run.record:
        raise ValueError(f"{run.directory} was not trained here and has no held-out data; name some with --data.path")
    with console.progress("reading the data") as progress:
        if isinstance(data, ImagesConfig):
            dataset = _images(run, data, named, progress)
        else:
            dataset = _text(run, data, named, progress)
    if not named.is_named and dataset.valid.digest != run.record["held_out"]:
        raise ValueError(
            f"the held-out data of {run.directory} are not what they were when it was trained; name the data with "
            "--data.path"
        )
    return dataset


def _images(run: LoadedRun, data: ImagesConfig, named: HeldOutConfig, progress: Progress) -> ImageDataset:
    if named.path:
        path, labels = named.path, named.label_path
        data = replace(data, path=path, label_path=labels, valid_path=path, valid_label_path=labels)
    return ImageDataset.open(data, _numbered(run.config.model), run.tokenizer if data.tokenizer else None, progress)


def _text(run: LoadedRun, data: DataConfig, named: HeldOutConfig, progress: Progress) -> Dataset:
    check_vocabulary(run.tokenizer, run.plan.config.vocab_size)
    classes = getattr(_numbered(run.config.model), "classes", ())
    if not named.is_named:
        return Dataset(data, run.tokenizer, (), (), prepare_held_out(data, run.tokenizer, progress, classes))
    longest, most = max(named.max_length or 0, named.target_length or 0), run.plan.config.max_length
    if longest > most:
        raise ValueError(f"rows of {longest} tokens are longer than the model's max_length={most}; take shorter ones")
    data = replace(
        data,
        path=named.path or "",
        valid_path=named.path,
        mixture=(),
        source_path=named.source_path,
        target_path=named.target_path,
        valid_source_path=named.source_path,
        valid_target_path=named.target_path,
        text_column=named.text_column or data.text_column,
        label_column=named.label_column or data.label_column,
        prompt=named.prompt or data.prompt,
        response=named.response or data.response,
        suffixes=named.suffixes or data.suffixes,
        max_length=named.max_length or data.max_length,
        target_length=named.target_length or data.target_length,
        too_long=named.too_long or ("refuse" if data.too_long == "split" else data.too_long),
    )
    check_data(run.config.objective, data)
    return Dataset(data, run.tokenizer, (), (), prepare_text(data, run.tokenizer, progress, classes))


def _numbered(model: Any) -> Any:
    """A model whose classes, where they have no names, as those of an imported one may have none, have numbers."""
    count = getattr(model, "num_classes", 0)
    return replace(model, classes=tuple(map(str, range(count)))) if count and not model.classes else model
