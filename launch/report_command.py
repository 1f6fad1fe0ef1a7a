"""`jumok report`: a run's page, made anew."""

from dataclasses import dataclass

import tyro

from train.config import RunConfig, from_json
from train.console import Console
from train.page.page import write_page
from train.run_directory import read_rows, resolve, writing
from train.state import blueprint


@dataclass(frozen=True)
class Arguments:
    """Writes RUN/report.html: one page with a run's curves, samples, time, memory, mesh and configuration.

    Attributes:
        run: RUN.
    """

    run: tyro.conf.Positional[str]


def main(arguments: Arguments, console: Console) -> dict[str, str]:
    """The `report` command."""
    run, _ = resolve(arguments.run)
    begun = read_rows(run.starts)[-1:]
    value, source = (begun[0].get("config"), run.starts) if begun else (run.read_config(), run.config)
    config = from_json(RunConfig, value, str(source))
    with console.progress("reading the rows"), writing(run.page):
        write_page(run, config, blueprint(config.model).declared)
    console.say(f"the page is {run.page}; any browser opens it")
    return {"report": str(run.page)}
