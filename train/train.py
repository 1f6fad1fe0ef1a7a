"""Trains: the loop, readable from top to bottom."""

import os
import shutil
import sys
import time
from pathlib import Path

# Run as a file, `train` must come to mean the package, and the process is prepared before JAX is imported.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from train.command import dispatch

    sys.exit(dispatch(["train", *sys.argv[1:]]))

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from data.dataset import Dataset
from data.images import ImageDataset
from data.loader import Batch, Loader, prefetch
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.parameters import Params
from model.presets import family_of
from model.recurrent import RecurrentConfig
from model.structures import kept_config
from train.checkpoint import Checkpoints
from train.cluster import ClusterConfig, agree, join, together
from train.config import RunConfig, differences, from_json, resolve, to_json, validate, with_model
from train.console import Console
from train.held_out import HeldOut, summary
from train.load import load_source, open_dataset, preparation_of, tokenizer_of, with_classes
from train.memory import compile_that_fits, explained, step_bytes
from train.mesh import make_mesh, place_batch
from train.metrics import Metrics, ProgressLine, first_row
from train.objectives.objective import WindowObjective
from train.page.page import Page
from train.perplexity import unigram_score
from train.program import Program
from train.ramp import Turn
from train.replicas import ReplicaCheck
from train.report import Profile, StepReport, announce, describe_mixture, describe_start, drawn
from train.run_directory import RunDirectory, is_local, read_rows, write_rows, writing
from train.samples import Samples
from train.signals import Stopped, StopRequest
from train.spikes import Spike, SpikeWatch
from train.state import TrainState
from train.time_use import TimeUse
from train.wandb_run import WandbRun, find_wandb
from train.watchdog import Watchdog


def main(config: RunConfig, console: Console) -> dict[str, Any]:
    """Trains `config`, or goes on where its run directory stands; returns what the run reached.

    What is refused (ValueError) is refused before anything is written in the run directory.
    """
    join(config.cluster)
    began, position, rewound = console.began, 0, 0
    while True:
        try:
            return _train(config, console, began, position, rewound)
        except Spike as spike:
            console.say(f"{spike}; the run goes back to its newest checkpoint, and on with the data behind the spike")
            began, position, rewound = time.time(), spike.position, rewound + 1


def _train(config: RunConfig, console: Console, began: float, skip_to: int, rewound: int) -> dict[str, Any]:
    """Trains from where the run directory stands, at the earliest from the data position `skip_to` on.

    Raises Spike where the run has to go back, which it has done `rewound` times.
    """
    time_use = TimeUse(began)
    console.quiet = console.quiet or jax.process_index() > 0
    run = RunDirectory(config.folder)
    resumes = run.exists()
    agree(run_directory=resumes)
    source = None
    if config.starts_from and resumes:
        config = with_model(config, from_json(RunConfig, run.read_config(), str(run.config)).model)
    elif config.starts_from:
        source = load_source(config.starts_from, config.mesh, console.say)
        config = with_model(config, source.model)
    samples = None
    with together():
        validate(config)
        config = resolve(with_classes(config))
        program = Program.of(config, make_mesh(config.mesh))
        given = program.weights_of(source, console.say) if source else None
        if resumes:
            _refuse_other_configuration(run, config)
        wandb, objective = find_wandb() if config.log.wandb else None, program.objective
        with console.progress("reading the data") as progress:
            dataset = open_dataset(config, tokenizer_of(config), progress)
        loader = dataset.loader(config.seed, objective.rows, preparation_of(objective, dataset))
        if config.sample.tokens:  # what could not be written is refused now
            assert dataset.tokenizer  # validate() has seen to it
            samples = Samples(
                config.sample, program.plan, dataset.tokenizer, program.mesh, run, config.seed, console.say
            )
        row = {name: array[0] for name, array in program.inputs(loader.rows_for(0, range(1))).items()}
    agree(data=dataset.digest, configuration=replace(config, cluster=ClusterConfig()))
    console.write_traceback = run.write_traceback

    def compile_whole() -> Any:
        with time_use.of("compile"), together():
            return compile_that_fits(program, row, console)

    # One program, compiled before the first step, so that what it needs is known before anything runs; of a new run
    # before anything is written, since what does not fit is refused.
    whole = None if resumes else compile_whole()

    with ExitStack() as open_things:
        with together():
            lock_is_ours = open_things.enter_context(run.lock())
        agree(run_directory=run.holders())  # or each would write its part of a checkpoint to a disk of its own
        if run.exists() != resumes:
            raise ValueError(f"another process began {run} in this moment; the same command goes on with it")
        checkpoints = open_things.enter_context(
            Checkpoints(run.checkpoints, config.checkpoint, writer=True, report=console.say)
        )

        # Where the run stands, in this order: its newest checkpoint that verifies; the weights that it starts from;
        # fresh weights.
        if resumes and checkpoints.steps() == [0]:
            raise ValueError(f"{run} holds imported weights; train them with --from {run} and another --run-dir")
        # Behind a spike, those that an interruption left count only where there is no other: interrupted or not, a run
        # goes back as far.
        regular = config.checkpoint.every if skip_to else 1
        newest = checkpoints.newest(_items(program.abstract), regular) if resumes else None
        if newest:
            step, items, record = newest
            state = TrainState(**items["progress"], params=items["params"], opt_state=items["opt_state"])
            with together():
                _refuse_other_data(record, dataset, config)
            if "time" in record:  # which checkpoints of earlier versions lack
                time_use.go_on_from(record["time"])
        else:
            step, items, record = 0, {}, {}
            if resumes and (row_before := first_row(run.metrics)):
                time_use.go_on_without_checkpoint(row_before)
            if config.starts_from and resumes:  # it ended before its first checkpoint
                source = load_source(config.starts_from, config.mesh, console.say)
                given = program.weights_of(source, console.say)
            state = program.first_state(given)
        source = given = None  # frees the weights that it starts from
        begin = int(state.examples_seen)
        left_out = record.get("left_out", [])
        if skip_to > begin:
            checkpoints.give_up_after(step)  # or the next start would go on from before the spike again
            left_out, begin = [*left_out, [begin, skip_to]], skip_to
            state = replace(state, examples_seen=jax.device_put(np.uint32(begin), state.examples_seen.sharding))
        agree(step=step)
        last = min(config.steps, step + (config.stop_after or config.steps))
        if step >= last:
            console.say(f"{run}: nothing left to do, {step} of {config.steps} steps are done")
            return _result(run, config, record | {"figures": run.read_figures(step) or record["figures"]}, loader)

        if whole is None:
            whole = compile_whole()
        compiled = {config.batch_size: whole}
        if smaller := config.batches.between(step + 1, last):
            with time_use.of("compile"), console.progress("compiling the steps of smaller batches") as progress:
                for done, rows in enumerate(smaller):
                    progress(done, len(smaller))
                    compiled[rows] = program.compile_step(row, rows)
        start = describe_start(program, whole, step)
        announce(
            console,
            program,
            dataset,
            loader,
            row,
            start,
            f"{run}, {'resumes at' if newest else 'begins; ends at'} step {step if newest else last}",
        )
        if jax.process_index() == 0:
            with writing(run.path):
                if not newest:
                    if dataset.tokenizer:
                        dataset.tokenizer.save(run.tokenizer)
                    run.write_config(to_json(config))
                write_rows(run.starts, [*read_rows(run.starts), start])

        stop_request = open_things.enter_context(StopRequest())
        their_run = WandbRun(wandb, run, config.name, to_json(config), console.say) if wandb else None
        metrics = open_things.enter_context(Metrics(run, step, tensorboard=config.log.tensorboard, wandb=their_run))
        line = open_things.enter_context(ProgressLine(last, step))
        watchdog = open_things.enter_context(Watchdog(run, config.hang_seconds))
        report = StepReport(config, row, metrics, line, watchdog, time_use, step, begin)
        spikes = SpikeWatch(config.spikes, record.get("losses", ()), rewound)
        replicas = ReplicaCheck(program.mesh, program.abstract, config.replicas_every)
        held_out = HeldOut(config, program.plan, program.mesh, dataset, config.batch_size // config.micro_batches)
        profile = open_things.enter_context(Profile(config.profile, run))
        open_things.enter_context(explained(program, row, step_bytes(whole), console))
        page = open_things.enter_context(Page(run, config, program.plan.declared, console.say))

        def evaluate(params: Params, limit: int) -> dict[str, Any]:
            """The figures of the held-out data; none where a signal breaks the evaluation off."""
            with _reading("the held-out data"), suppress(Stopped), watchdog.pause(), time_use.of("evaluation"):
                return held_out.score(params, limit, stop_request.break_off)
            return {}

        def make_batch(turn: Turn) -> tuple[Turn, dict[str, jax.Array]]:
            def rows_for(places: np.ndarray) -> Batch:
                return program.inputs(loader.rows_for(turn.position, places))

            with _reading(f"the data after {turn.position} examples"):
                return turn, place_batch(program.mesh, turn.rows, rows_for)

        open_things.enter_context(time_use.of("steps"))
        batches = time_use.waiting("data", prefetch(make_batch, config.batches.turns(step, last, begin)))
        for turn, batch in batches:
            step = turn.step
            watchdog.begins(step)
            with profile.of(step, state):
                state, step_metrics = compiled[turn.rows](state, batch)
            report.after(turn, step_metrics)
            spikes.after(turn, step_metrics["loss"])
            replicas.after(step, state)
            checkpoints.check()
            lock_is_ours()

            evaluates = step == last or (config.evaluate.every and step % config.evaluate.every == 0)
            stopped, figures = stop_request.at(step), {}
            samples_now = samples and samples.due(step) and step < last  # the last step's is shown at the end
            if stopped or evaluates or samples_now or step % config.checkpoint.every == 0:
                report.settle(turn, step_metrics)
                with watchdog.pause():
                    spikes.settle()
                    replicas.now(step, state)
                if evaluates and not stopped:
                    figures = evaluate(state.params, config.evaluate.tokens)
                    stopped = stop_request.heard
                if samples and samples_now and not stopped:
                    with suppress(Stopped), watchdog.pause(), time_use.of("evaluation"):
                        samples.write(step, state.params, lambda text: stop_request.break_off())
                    stopped = stop_request.heard
                report.write(figures)
                if stopped or step == last or step % config.checkpoint.every == 0:
                    with watchdog.pause(), time_use.of("checkpoint"):
                        seen = turn.position + turn.rows
                        record = _record(config, dataset, report, time_use, step, seen, figures)
                        record |= {"losses": spikes.record(), "left_out": left_out}
                        # Rows up to a step are durable before its checkpoint commits.
                        checkpoints.save(step, _items(state), record, first=metrics.flush)
                with watchdog.pause(), time_use.of("report"):
                    page.write()
                report.restart_clock()
            if stopped:
                checkpoints.wait()
                line.note(f"stopped after step {step}, saved; the same command goes on from here")
                raise stopped
        checkpoints.wait()
        if config.evaluate.tokens:  # the curve was drawn on a part of the held-out text; at the end all of it counts
            record |= {"figures": evaluate(state.params, 0)}
        if stopped := stop_request.heard:
            line.note(f"stopped after step {step}, the last, saved; what comes after it was broken off")
            raise stopped
        if jax.process_index() == 0:
            with writing(run.path):
                write_rows(run.figures, [{"step": step, **record["figures"]}])
        console.say(f"where the time went: {time_use.summary()}")

    params = state.params
    del state, items  # the sample needs no optimizer
    _farewell(console, run, program, params, dataset, record, samples)
    page.write(None)
    if len(loader.sources) > 1:
        describe_mixture(console, loader, record["examples_seen"])
    return _result(run, config, record, loader)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Data that cannot be read fail a run that has begun: a ValueError would be a refusal, and those leave no trace."""
    try:
        yield
    except ValueError as error:
        raise RuntimeError(f"{what} cannot be read: {error}") from error


def _items(state: TrainState) -> dict[str, Any]:
    """The state as checkpoints hold it: weights apart, so that they can be read alone."""
    progress = {name: getattr(state, name) for name in ("step", "examples_seen", "nonfinite_steps", "nonfinite_in_row")}
    return {"params": state.params, "opt_state": state.opt_state, "progress": progress}


def _record(
    config: RunConfig,
    dataset: Dataset | ImageDataset,
    report: StepReport,
    time_use: TimeUse,
    step: int,
    examples_seen: int,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """What is saved beside the arrays; runs and checkpoints compare by the first of the figures."""
    return {
        "config": to_json(config),
        "step": step,
        "examples_seen": examples_seen,
        "tokens": examples_seen * report.tokens_a_row,
        "loss": report.loss,
        "data": dataset.digest,
        "held_out": dataset.valid.digest,
        "tokenizer": dataset.tokenizer.digest if dataset.tokenizer else None,
        "evaluation": next(iter(figures.values()), None),
        "figures": figures,
        "time": time_use.record(),
    }


def _refuse_other_configuration(run: RunDirectory, config: RunConfig) -> None:
    changed = differences(resolve(from_json(RunConfig, run.read_config())), config)  # fields may be newer than the run
    if changed:
        shown = "; ".join(f"{name} was {old!r} and is now {new!r}" for name, old, new in changed)
        raise ValueError(
            f"{run} holds a run of another configuration ({shown}); "
            f"give another --run-dir (--from {run} starts it from these weights), or the options that it was begun with"
        )


def _refuse_other_data(record: dict[str, Any], dataset: Dataset | ImageDataset, config: RunConfig) -> None:
    tokenizer = dataset.tokenizer.digest if dataset.tokenizer else None
    for name, now in (("tokenizer", tokenizer), ("data", dataset.digest)):
        if record[name] != now and not config.data.allow_changed:
            raise ValueError(
                f"the {name} of {config.data.names()} is not what this run learned from so far "
                f"(digest {str(record[name])[:12]}, now {str(now)[:12]}); "
                "give the same text, or pass --data.allow-changed"
            )


def _farewell(
    console: Console,
    run: RunDirectory,
    program: Program,
    params: Params,
    dataset: Dataset | ImageDataset,
    record: dict[str, Any],
    samples: Samples | None,
) -> None:
    """The held-out figures beside a unigram model's, a sample to read, and what to try next."""
    config, figures = program.config, record["figures"]
    if figures:
        console.say(f"held-out data: {summary(figures)}")
    if figures and isinstance(program.objective, WindowObjective) and isinstance(dataset, Dataset):
        unigram = unigram_score(dataset.corpora, dataset.valid, dataset.tokenizer.vocab_size).figures()
        console.say(f"a unigram model of the same tokens: {unigram['bits_per_byte']:.3f} bits a byte")
    if samples:
        console.say("\nwhat it writes:\n")
        samples.write(record["step"], params, console.write)
        console.write("\n\n")
    here = "jumok" if shutil.which("jumok") else os.path.relpath(Path(sys.executable).with_name("jumok"))
    console.say(f"the run is in {run}, and {run.page} shows it; try next:")
    for command in _next_commands(run, kept_config(config.model)):
        console.say(f"  {here} {command}")


def _next_commands(run: RunDirectory, model: Any) -> Iterator[str]:
    """What can be done with a run of this model."""
    yield f"evaluate {run}"
    match model:
        case EncoderConfig() if model.predicts_tokens:
            yield f'generate {run} --prompt "... [MASK] ..."'
        case DecoderConfig() | EncoderDecoderConfig() | RecurrentConfig():
            yield f'generate {run} --prompt "..."'
    with suppress(ValueError):  # transformers may know no such model
        family_of(model)
        yield f"export {run} {run if is_local(run.path) else run.path.name}-export"


def _result(run: RunDirectory, config: RunConfig, record: dict[str, Any], loader: Loader) -> dict[str, Any]:
    return {
        "run_dir": str(run),
        "step": record["step"],
        "tokens": record["tokens"],
        "loss": record["loss"],
        "evaluation": record["figures"],
        "sources": drawn(loader, record["examples_seen"]),
    }
