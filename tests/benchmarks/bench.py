"""`make bench`: how fast training, decoding and loading are here, beside PyTorch and transformers where installed.

Each row runs in a process of its own (child.py), on one core and on all; in it the systems take turns. Every figure
is shown as minimum, median and maximum over the turns. Ratios are of our time to theirs within a turn: under 1 we are
faster. CPU time is that of all threads together, and suffers less from what else the machine is doing.

    make bench
    .venv/bin/python tests/benchmarks/bench.py --quick          under a minute
    .venv/bin/python tests/benchmarks/bench.py --only "train"   the rows whose names contain it
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from train.console import Console


class Row(NamedTuple):
    """What `target` "module:name" measures. Rows that are `quick` do for a first look; a `single` one uses one core."""

    target: str
    quick: bool = False
    single: bool = False


ROWS = {
    "train 4x128": Row("training:4x128", quick=True),
    "train 6x384": Row("training:6x384"),
    "train 6x384 v8192": Row("training:6x384-v8192"),
    "train gpt2-124m": Row("training:gpt2-124m"),
    "decode batch 1": Row("decoding:1"),
    "decode batch 8": Row("decoding:8"),
    "load isolated": Row("loading:isolated", quick=True, single=True),
    "load contiguous": Row("loading:contiguous", single=True),
}
_REPETITIONS, _QUICK_REPETITIONS = 7, 5


def main() -> int:
    """Measures, shows and writes; returns 1 where a row failed."""
    arguments = _arguments()
    console = Console()
    cores = sorted(os.sched_getaffinity(0))
    chosen = {
        name: row for name, row in ROWS.items() if arguments.only in name and (row.quick or not arguments.quick)
    }
    if not chosen:
        sys.stderr.write(f"no row's name contains {arguments.only!r}; the rows are {', '.join(ROWS)}\n")
        return 2
    machine = _run(cores, 1, "machine:this")
    mallopt = "left alone" if os.environ.get("JUMOK_NO_MALLOPT") else "as `jumok` sets it, for all systems"
    report = {"machine": machine, "cores": len(cores), "malloc": mallopt, "load": [os.getloadavg()], "rows": []}
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    console.say(f"{machine['device']}, {len(cores)} cores, load {os.getloadavg()[0]:.1f}; {versions}; malloc {mallopt}")
    if "torch" not in machine["versions"]:
        console.say("PyTorch is not installed here: our own figures only (the extra `parity` has it)")

    on_cpu = machine["platform"] == "cpu"
    repetitions = _QUICK_REPETITIONS if arguments.quick else _REPETITIONS
    for name, row in chosen.items():
        settings = [cores[-1:]] if row.single else [cores[-1:], cores] if on_cpu and len(cores) > 1 else [cores]
        for setting in settings:
            begin = time.monotonic()
            result = _run(setting, repetitions, row.target)
            place = f"{len(setting)} core{'s' * (len(setting) > 1)}" if on_cpu or row.single else machine["device"]
            report["rows"].append({"name": name, "cores": len(setting), "seconds": time.monotonic() - begin, **result})
            _show(console, f"{name}, {place}", result, with_cpu=on_cpu or row.single)
            if "not_run" in result:
                break
    report["load"].append(os.getloadavg())
    file = Path(arguments.json)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
    console.say(f"\nall samples are in {file}")
    return int(any("failed" in row for row in report["rows"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a first look in under a minute")
    parser.add_argument("--only", default="", metavar="NAME", help="the rows whose names contain NAME")
    parser.add_argument("--json", default="runs/bench.json", metavar="FILE", help="where every sample is written")
    return parser.parse_args()


def _run(cores: list[int], repetitions: int, target: str) -> dict[str, Any]:
    """What a child measured, or {"failed": the last line of what it said}."""
    child = Path(__file__).with_name("child.py")
    with tempfile.TemporaryDirectory(prefix="jumok-bench-") as folder:
        file = Path(folder) / "result.json"
        words = [sys.executable, str(child), ",".join(map(str, cores)), str(repetitions), str(file), target]
        ended = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if ended.returncode or not file.exists():
            sys.stderr.write(ended.stderr)
            return {"failed": (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]}
        return json.loads(file.read_text())


def _show(console: Console, title: str, result: dict[str, Any], with_cpu: bool) -> None:
    for reason in ("failed", "not_run"):
        if reason in result:
            console.say(f"\n{title}: {reason.replace('_', ' ')}: {result[reason]}")
            return
    samples, clocks = result["samples"], {"cpu": "CPU-s", "wall": "s"} if with_cpu else {"wall": "s"}
    columns = [column for column in result["columns"] if column[1] in clocks]
    headers = ["min median max", *(header for header, _, _ in columns)]
    if len(samples) > 1:
        headers += [f"our {shown} / its" for shown in clocks.values()]
    table = []
    for system, seconds in samples.items():
        cells = [[amount / s if amount else s * 1e3 for s in seconds[clock]] for _, clock, amount in columns]
        if system != "jumok":
            pairs = [zip(samples["jumok"][clock], seconds[clock], strict=True) for clock in clocks]
            cells += [[ours / theirs for ours, theirs in pair] for pair in pairs]
        row = [system, *map(_spread, cells)]
        table.append(row + [""] * (len(headers) - len(row)))
    console.say()
    console.table(f"{title}: {result['what']}", headers, table)
    if result.get("mfu"):
        console.say(f"MFU, causal attention as computed: {_spread([100 * u for u in result['mfu']])} %")
    if result["agreement"]:
        console.say(result["agreement"])


def _spread(values: list[float]) -> str:
    return " ".join(f"{_short(value):>5}" for value in (min(values), statistics.median(values), max(values)))


def _short(value: float) -> str:
    """Three digits: 0.98, 63.5, 1458, 11.8k, 3.21M."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            value /= 1e6 if letter == "M" else 1e3
            return f"{value:.3g}{letter}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
