"""`make bench`: how fast training, decoding and loading are here, beside PyTorch and transformers where installed.

Each row runs in a process of its own (child.py), on one core and on all; in it the systems take turns. Every figure is
shown as minimum, median and maximum over the turns. Ratios are of our time to theirs in the same turn: below 1 we are
faster. CPU time is that of all threads together, and suffers less from what else the machine is doing.

The allocator is set as `jumok` sets it for its users. PyTorch shares the process, hence the setting, which makes it 7 %
slower on the smallest model and does nothing to it on larger ones; JUMOK_NO_MALLOPT=1 leaves the allocator alone.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from train.console import Console


class Row(NamedTuple):
    """`target` is a module beside this one, a function of it and its argument; `quick` rows do for a first look."""

    target: str
    quick: bool = False
    cores: tuple[str, ...] = ("one", "all")  # on how many it is measured, in turn


ROWS = {
    "matmul": Row("rows:matmul:1024", quick=True),
    "train 4x128": Row("rows:train:4x128", quick=True),  # the recipe char_shakespeare
    "train 6x384": Row("rows:train:6x384"),
    "train 6x384 v8192": Row("rows:train:6x384-v8192"),
    "train gpt2-124m": Row("rows:train:gpt2-124m"),
    "train llama-1b": Row("family_rows:llama:"),
    "train encoder": Row("family_rows:masked_lm:"),
    "train encoder-decoder": Row("family_rows:translate:"),
    "train vision": Row("family_rows:classify_images:"),
    "decode batch 1": Row("rows:decode:1"),
    "decode batch 8": Row("rows:decode:8"),
    "decode beam 4": Row("family_rows:beam:"),
    "load isolated": Row("data_rows:load:isolated", quick=True, cores=("one",)),
    "load contiguous": Row("data_rows:load:contiguous", cores=("one",)),
    "encode": Row("data_rows:encode:"),
    "prepare": Row("data_rows:prepare:"),
    "compile 4x128": Row("run_rows:compiling:4x128", cores=("one",)),
    "compile gpt2-124m": Row("run_rows:compiling:gpt2-124m", cores=("one",)),
    "evaluate 6x384 v8192": Row("run_rows:evaluating:6x384-v8192"),
    "save": Row("run_rows:saving:6x384-v8192", cores=("all",)),
    "save blocks": Row("run_rows:blocking:6x384-v8192", cores=("all",)),
    "restore": Row("run_rows:restoring:6x384-v8192", cores=("all",)),
    "cold start": Row("data_rows:cold:", cores=("one",)),
    "memory 32 MB": Row("data_rows:memory:32", cores=("all",)),
    "memory 3.2 GB": Row("data_rows:memory:3200", cores=("all",)),
}
_BUSY = 0.1  # cores taken by others, from which on a row is said to be disturbed


def main() -> int:
    """Measures, shows and writes; returns 1 where a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a first look in under a minute")
    parser.add_argument(
        "--only", default="", metavar="NAME", help=f"the rows whose names contain it: {', '.join(ROWS)}"
    )
    parser.add_argument("--json", default="runs/bench.json", metavar="FILE", help="where all samples are written")
    options = parser.parse_args()
    chosen = {name: row for name, row in ROWS.items() if options.only in name and (row.quick or not options.quick)}
    if not chosen:
        parser.error(f"no row's name contains {options.only!r}; the rows are {', '.join(ROWS)}")

    console, cores = Console(), sorted(os.sched_getaffinity(0))
    machine = _run(cores, 1, "rows:machine:")
    if "failed" in machine:
        return 1
    on_cpu = machine["platform"] == "cpu"
    kept = on_cpu and not os.environ.get("JUMOK_NO_MALLOPT")
    machine |= {"processor": _processor(), "malloc": "as jumok sets it, for every system" if kept else "left alone"}
    console.say("{processor}; {device}; {versions}; malloc {malloc}".format(**machine))
    if absent := [package for package in ("torch", "transformers") if package not in machine["versions"]]:
        console.say(f"not installed (the extra `parity` has them): {', '.join(absent)}; nothing is compared with these")
    console.say("every figure: minimum, median and maximum over the turns")
    found = []
    for name, row in chosen.items():
        on_processor = on_cpu or row.target.startswith("data_rows")
        sizes = {len(cores) if used == "all" or not on_processor else 1 for used in row.cores}
        for used in (cores[-size:] for size in sorted(sizes)):
            result = {"name": name, "cores": len(used), **_run(used, 5 if options.quick else 7, row.target)}
            found.append(result)
            _show(console, result, with_cpu=on_processor)
            if "not_run" in result:
                break
    file = Path(options.json)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "rows": found}, indent=1) + "\n")
    console.say(f"\nall samples are in {file}")
    return int(any("failed" in result for result in found))


def _run(cores: list[int], repetitions: int, target: str) -> dict[str, Any]:
    """What a child found, and "others", how many of its cores other programs took; or "failed", what it said last."""
    child = Path(__file__).with_name("child.py")
    with tempfile.TemporaryDirectory(prefix="jumok-bench-") as folder:
        file = Path(folder) / "result.json"
        words = [sys.executable, str(child), ",".join(map(str, cores)), str(repetitions), str(file), target]
        begin, before = time.monotonic(), _others(cores)
        ended = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        others = (_others(cores) - before) / (time.monotonic() - begin)
        if not file.exists():
            sys.stderr.write(ended.stderr)
            return {"failed": (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]}
        return json.loads(file.read_text()) | {"others": max(0.0, others)}


def _others(cores: list[int]) -> float:
    """Seconds so far in which these cores were busy, other than with our children."""
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = [[int(tick) for tick in values] for name, *values in lines if name in {f"cpu{core}" for core in cores}]
    busy = sum(sum(t[:8]) - t[3] - t[4] for t in ticks) / os.sysconf("SC_CLK_TCK")  # all but idle and iowait
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy - usage.ru_utime - usage.ru_stime


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def _show(console: Console, result: dict[str, Any], with_cpu: bool) -> None:
    title = f"{result['name']}, {result['cores']} core{'s' * (result['cores'] > 1)}"
    for reason in ("failed", "not_run"):
        if reason in result:
            console.say(f"\n{title}: {reason.replace('_', ' ')}: {result[reason]}")
            return
    console.say(f"\n{title}: {result['what']}")
    if figures := result.get("figures"):
        console.say(", ".join(f"{name}: {_short(value)}" for name, value in figures.items()))
        return
    clocks = ["cpu", "wall"] if with_cpu else ["wall"]
    columns = [column for column in result["columns"] if column[1] in clocks]
    ratios = {"cpu": "our / its CPU-s", "wall": "our / its s"} if len(result["samples"]) > 1 else {}
    headers = ["", *(header for header, _, _ in columns), *(ratios[clock] for clock in clocks if ratios)]
    ours, table = result["samples"]["jumok"], []
    for system, theirs in result["samples"].items():
        cells = [[amount / s if amount else s * 1e3 for s in theirs[clock]] for _, clock, amount in columns]
        if system != "jumok":
            cells += [[a / b for a, b in zip(ours[clock], theirs[clock], strict=True)] for clock in clocks]
        shown = [" ".join(f"{_short(f(cell)):>5}" for f in (min, statistics.median, max)) for cell in cells]
        table.append([system, *shown, *[""] * (len(headers) - len(shown) - 1)])
    console.table("", headers, table)
    if agreement := result.get("agreement"):
        console.say(agreement)
    if result["others"] > _BUSY:
        spinning = "; PyTorch's threads, which wait for each other by spinning, suffer most"
        several = result["cores"] > 1 and len(result["samples"]) > 1
        console.say(f"disturbed: other programs took {result['others']:.1f} cores{spinning if several else ''}")


def _short(value: float) -> str:
    """Three digits: 0.985, 63.5, 1458, 11.8k, 3.21M."""
    value, letter = (value / 1e6, "M") if value >= 1e6 else (value / 1e3, "k") if value >= 1e4 else (value, "")
    return (f"{value:.0f}" if value >= 100 else f"{value:.3g}") + letter


if __name__ == "__main__":
    sys.exit(main())
