"""Trains: the loop, readable from top to bottom."""

import os
import shutil
import sys
from pathlib import Path

# Run as a file, `train` must come to mean the package, and the process is prepared before JAX is imported.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from train.command import dispatch

    sys.exit(dispatch(["train", *sys.argv[1:]]))

from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import jax

from data.dataset import Dataset, prepare_dataset
from data.loader import Loader, prefetch
from data.tokenizers.load import load_tokenizer
from model.decode import Sampling
from model.parameters import Params
from train.checkpoint import Checkpoints
from train.cluster import ClusterConfig, agree, join
from train.config import RunConfig, differences, from_json, resolve, to_json, validate, with_model
from train.console import Console
from train.generate import Writer, room_after
from train.load import load_source
from train.mesh import make_mesh, place_batch
from train.metrics import Metrics, ProgressLine
from train.perplexity import PerplexityMeter, summary, unigram_score
from train.program import Program
from train.report import Profile, StepReport, announce, describe_mixture, drawn
from train.run_directory import RunDirectory
from train.signals import Stopped, StopRequest
from train.state import TrainState


def main(config: RunConfig, console: Console) -> dict[str, Any]:
    """Trains `config`, or goes on where its run directory stands; returns what the run reached.

    What is refused (ValueError) is refused before anything is written in the run directory.
    """
    join(config.cluster)
    console.quiet = console.quiet or jax.process_index() > 0
    run = RunDirectory(config.run_dir or f"runs/{config.name}")
    resumes = run.exists()
    source = None
    if config.init_from and resumes:
        config = with_model(config, from_json(RunConfig, run.read_config(), str(run.config)).model)
    elif config.init_from:
        source = load_source(config.init_from, config.mesh, console.say)
        config = with_model(config, source.model)
    validate(config)
    config = resolve(config)
    program = Program.of(config, make_mesh(config.mesh))
    if resumes:
        _refuse_other_configuration(run, config)

    tokenizer = load_tokenizer(run.tokenizer) if resumes else source.tokenizer if source else None
    with console.progress("reading the text") as progress:
        dataset = prepare_dataset(
            config.data, config.model.vocab_size, config.seed, tokenizer, progress, roles=program.objective.roles
        )
    loader = dataset.loader(config.data, config.seed, program.objective.preparation(dataset.tokenizer))
    if config.sample.tokens:  # what could not be written at the end is refused now
        Sampling(config.sample.temperature).validate()
        room_after([config.sample.prompt], dataset.tokenizer, config.model.max_length)

    with ExitStack() as open_things:
        lock_is_ours = open_things.enter_context(run.lock())
        console.write_traceback = run.write_traceback
        if run.exists() != resumes:
            raise ValueError(f"another process began {run} in this moment; the same command goes on with it")
        checkpoints = open_things.enter_context(Checkpoints(run.checkpoints, config.checkpoint, writer=True))

        # Where the run stands, in this order: its newest checkpoint that verifies; the weights that it starts from;
        # fresh weights.
        if resumes and checkpoints.steps() == [0]:
            raise ValueError(f"{run} holds imported weights; train them with --from {run} and another --run-dir")
        newest = checkpoints.newest(_items(program.abstract), console.say) if resumes else None
        if newest:
            step, items, record = newest
            state = TrainState(**items["progress"], params=items["params"], opt_state=items["opt_state"])
            _refuse_other_data(record, dataset, config)
        else:
            step, items, record = 0, {}, {}
            if config.init_from and resumes:  # it ended before its first checkpoint
                source = load_source(config.init_from, config.mesh, console.say)
            state = program.first_state(source.params if source else None)
        source = None  # frees the weights that it starts from
        agree(step=step, data=dataset.digest, configuration=replace(config, cluster=ClusterConfig()))
        last = min(config.steps, step + (config.stop_after or config.steps))
        if step >= last:
            console.say(f"{run}: nothing left to do, {step} of {config.steps} steps are done")
            return _result(run, config, record, loader)

        # One program, compiled before the first step, so that what it needs is known before anything runs.
        with console.progress("compiling the step"):
            compiled = program.compile_step({name: array[0] for name, array in loader.rows_for(0, range(1)).items()})
        announce(
            console,
            program,
            dataset,
            loader,
            compiled,
            f"{run}, {'resumes at' if newest else 'begins; ends at'} step {step if newest else last}",
        )
        if jax.process_index() == 0 and not newest:
            dataset.tokenizer.save(run.tokenizer)
            run.write_config(to_json(config))

        stop_request = open_things.enter_context(StopRequest())
        metrics = open_things.enter_context(Metrics(run, step, tensorboard=config.log.tensorboard))
        line = open_things.enter_context(ProgressLine(last, step))
        begin = int(state.examples_seen)
        report = StepReport(config, metrics, line, step, begin)
        window = min(config.data.max_length, config.model.max_length)
        meter = PerplexityMeter(
            program.plan,
            program.objective,
            program.mesh,
            window=window,
            stride=window,
            batch_size=config.batch_size // config.micro_batches,
        )
        profile = open_things.enter_context(Profile(config.profile, run))

        def evaluate(params: Params, limit: int) -> dict[str, Any]:
            """The figures of the held-out text; none where a signal breaks the evaluation off."""
            held_out, tokenizer = dataset.valid, dataset.tokenizer
            with suppress(Stopped):
                return meter.score(params, held_out, tokenizer, limit=limit, between=stop_request.break_off).figures()
            return {}

        def make_batch(position: int) -> dict[str, jax.Array]:
            return place_batch(program.mesh, config.batch_size, lambda places: loader.rows_for(position, places))

        positions = range(begin, begin + (last - step) * config.batch_size, config.batch_size)
        for position, batch in zip(positions, prefetch(make_batch, positions), strict=True):
            step += 1
            with profile.of(step):
                state, step_metrics = compiled(state, batch)
            report.after(step, step_metrics)
            checkpoints.check()
            lock_is_ours()

            evaluates = step == last or (config.evaluate.every and step % config.evaluate.every == 0)
            stopped, figures = stop_request.at(step), {}
            if stopped or evaluates or step % config.checkpoint.every == 0:
                report.settle(step, step_metrics)
                if evaluates and not stopped:
                    figures = evaluate(state.params, config.evaluate.tokens)
                    stopped = stop_request.heard
                report.write(figures)
                if stopped or step == last or step % config.checkpoint.every == 0:
                    metrics.flush()  # rows up to a step are durable before its checkpoint commits
                    record = _record(config, dataset, step, position + config.batch_size, report.loss, figures)
                    checkpoints.save(step, _items(state), record)
                report.restart_clock()
            if stopped:
                checkpoints.wait()
                line.note(f"stopped after step {step}, saved; the same command goes on from here")
                raise stopped
        checkpoints.wait()
        if config.evaluate.tokens:  # the curve was drawn on a part of the held-out text; at the end all of it counts
            record |= {"figures": evaluate(state.params, 0)}
        stop_request.break_off()

    params = state.params
    del state, items  # the sample needs no optimizer
    _farewell(console, run, program, params, dataset, record["figures"])
    if len(loader.sources) > 1:
        describe_mixture(console, loader, record["examples_seen"])
    return _result(run, config, record, loader)


def _items(state: TrainState) -> dict[str, Any]:
    """The state as checkpoints hold it: weights apart, so that they can be read alone."""
    progress = {name: getattr(state, name) for name in ("step", "examples_seen", "nonfinite_steps", "nonfinite_in_row")}
    return {"params": state.params, "opt_state": state.opt_state, "progress": progress}


def _record(
    config: RunConfig, dataset: Dataset, step: int, examples_seen: int, loss: float | None, figures: dict[str, Any]
) -> dict[str, Any]:
    """What is saved beside the arrays."""
    return {
        "config": to_json(config),
        "step": step,
        "examples_seen": examples_seen,
        "tokens": examples_seen * config.data.max_length,
        "loss": loss,
        "data": dataset.digest,
        "held_out": dataset.valid.digest,
        "tokenizer": dataset.tokenizer.digest,
        "evaluation": figures.get("nats_per_token"),
        "figures": figures,
    }


def _refuse_other_configuration(run: RunDirectory, config: RunConfig) -> None:
    changed = differences(resolve(from_json(RunConfig, run.read_config())), config)  # fields may be newer than the run
    if changed:
        shown = "; ".join(f"{name} was {old!r} and is now {new!r}" for name, old, new in changed)
        raise ValueError(
            f"{run} holds a run of another configuration ({shown}); "
            "give another --run-dir, or the options that it was begun with"
        )


def _refuse_other_data(record: dict[str, Any], dataset: Dataset, config: RunConfig) -> None:
    for name, now in (("tokenizer", dataset.tokenizer.digest), ("data", dataset.digest)):
        if record[name] != now and not config.data.allow_changed:
            raise ValueError(
                f"the {name} of {config.data.names()} is not what this run learned from so far "
                f"(digest {record[name][:12]}, now {now[:12]}); "
                "give the same text, or pass --data.allow-changed"
            )


def _farewell(
    console: Console, run: RunDirectory, program: Program, params: Params, dataset: Dataset, figures: dict[str, Any]
) -> None:
    """The held-out figures beside a unigram model's, a sample to read, and what to try next."""
    config = program.config
    if figures:
        unigram = unigram_score(dataset.corpora, dataset.valid, dataset.tokenizer.vocab_size).figures()
        console.say(f"held-out text: {summary(figures)}")
        console.say(f"a unigram model of the same tokens: {unigram['bits_per_byte']:.3f} bits a byte")
    if config.sample.tokens:
        console.say("\nwhat it writes:\n")
        writer = Writer(program.plan, params, dataset.tokenizer, program.mesh)
        sampling = Sampling(config.sample.temperature)
        room = room_after([config.sample.prompt], dataset.tokenizer, config.model.max_length)
        console.write(config.sample.prompt)
        for text, _ in writer.write([config.sample.prompt], min(config.sample.tokens, room), sampling, config.seed):
            console.write(text)
        console.write("\n\n")
    here = "jumok" if shutil.which("jumok") else os.path.relpath(Path(sys.executable).with_name("jumok"))
    console.say(f"the run is in {run}; try next:")
    for command in (f"evaluate {run}", f'generate {run} --prompt "..."', f"export {run} {run}-export"):
        console.say(f"  {here} {command}")


def _result(run: RunDirectory, config: RunConfig, record: dict[str, Any], loader: Loader) -> dict[str, Any]:
    return {
        "run_dir": str(run),
        "step": record["step"],
        "tokens": record["tokens"],
        "loss": record["loss"],
        "evaluation": record["figures"],
        "sources": drawn(loader, record["examples_seen"]),
    }
