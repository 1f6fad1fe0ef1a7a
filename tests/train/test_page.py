"""A run's page: it shows what there is, whatever the run's names and texts hold, and asks nothing of anyone."""

import dataclasses
import json
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import DataConfig
from launch.report_command import Arguments, main
from model.decoder import DecoderConfig
from train.config import EvaluateConfig, RunConfig, SampleConfig, to_json, validate
from train.console import Console
from train.page.history import History, Measured, thin
from train.page.markup import element
from train.page.page import Page, page_of, write_page
from train.picture import Axis
from train.recipes import RECIPES
from train.run_directory import RunDirectory, read_rows, write_rows
from train.state import blueprint
from train.train import main as train

# A recipe of each structure.
STRUCTURES = (
    *("tiny", "bert_tiny", "transformer-tiny", "lstm-tiny", "vit_mnist"),
    *("caption_mnist", "electra_tiny", "distilbert_tiny"),
)
MODEL = DecoderConfig(num_layers=1, model_dim=16, num_heads=4, num_kv_heads=2, vocab_size=70, max_length=32)
DECLARED = blueprint(MODEL).declared
HOSTILE = "</pre><script>alert(1)</script><img src=http://x onerror='y'>&\"\x00\x1b[31m\ud800\u202e"
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "section", "h1", "h2", "p", "span", "div", "pre"),
    *("dl", "dt", "dd", "small", "b", "i", "code", "input", "label", "ul", "li", "details", "summary"),
    *("figure", "figcaption", "svg", "text", "path", "polyline", "circle", "rect"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


def row(step: int, **more: Any) -> dict[str, Any]:
    measured = {"learning/loss": 5 / (1 + step), "learning/grad_norm": 1.5, "learning/current_learning_rate": 1e-3}
    speed = {"perf/per_device_tokens_per_sec": 4e4, "perf/mfu": 0.41, "perf/memory_bytes": 2**30}
    spent = {"time/startup_seconds": 2.5, "time/steps_seconds": 0.1 * step, "perf/goodput": 0.5}
    return {"step": step, "tokens": 512 * step, "time": 1e9 + step, **measured, **speed, **spent, **more}


def start(config: RunConfig, step: int = 0, **mesh: int) -> dict[str, Any]:
    memory = {"parameters": 2**20, "optimizer": 2**21, "step": 2**23, "limit": 2**24}
    shape = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | mesh
    where = {"devices": 8, "device_kind": "cpu", "host": "here", "versions": {"jax": "1"}}
    return {"time": 1e9, "step": step, "mesh": shape, "memory": memory, "config": to_json(config), **where}


def config_of(**changes: Any) -> RunConfig:
    return dataclasses.replace(RunConfig(model=MODEL, name="mine", steps=10), **changes)


def page(
    config: RunConfig | None = None,
    rows: list[dict[str, Any]] | None = None,
    starts: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    name: str = "runs/mine",
    status: str = "running",
    figures: dict[str, Any] | None = None,
) -> str:
    config, history = config or config_of(), History()
    for each in [row(step) for step in range(1, 11)] if rows is None else rows:
        history.add(each)
    starts = [start(config)] if starts is None else starts
    declared = DECLARED if config.model == MODEL else blueprint(config.model).declared
    return page_of(name, config, declared, history, status, starts, samples or [], figures or {})


class Seen(HTMLParser):
    """The elements and attributes of a page, as a browser reads them."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")


def texts(text: str, kind: str = "title") -> list[str]:
    return ["".join(found.itertext()) for found in ElementTree.fromstring(text).iter(kind)]


def is_harmless(text: str) -> bool:
    """Whether a page is well-formed and nothing in it can run, load or lead anywhere."""
    seen = Seen(text)
    assert seen.elements <= ELEMENTS
    assert not {name for name in seen.attributes if name.startswith("on")}
    assert not seen.attributes.keys() & {"src", "srcset", "href", "action", "background", "data", "xmlns"}
    assert all(re.fullmatch(r"width: \d+\.\d+%", style) for style in seen.attributes["style"])
    (css,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert not re.search(r"url|@import|http|<|\\\\", css)
    assert "default-src 'none'; style-src 'unsafe-inline'" in seen.attributes["content"]
    ElementTree.fromstring(text)
    return text.encode().decode() == text


def test_a_page_has_its_parts_and_asks_nothing_of_anyone():
    text = page(samples=[{"step": 5, "prompt": "It was ", "text": "night"}])
    assert is_harmless(text)
    assert not re.search("https?://", text)
    assert texts(text, "h2") == [
        "Curves",
        "Samples",
        "Where the time went",
        "Memory of a device",
        "Mesh",
        "Configuration",
        "Starts",
    ]
    captions = " ".join(texts(text, "figcaption"))
    for title in ("Loss", "Learning rate", "Gradient norm", "Speed", "MFU"):
        assert title in captions
    assert "It was night" in texts(text, "pre")
    assert "jumok report runs/mine" in text
    assert "activations and temporaries" in text
    assert "50.0% of the limit of 16.0 MiB" in text


def test_whatever_names_and_texts_hold_is_text():
    config = config_of(name=HOSTILE, sample=SampleConfig(prompt=HOSTILE))
    begun = start(config) | {"host": HOSTILE, "device_kind": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    rows = [row(step, **{f"eval/{HOSTILE}": 0.5, f"learning/{HOSTILE}": 1.5}) for step in (1, 2, 3)]
    text = page(config, rows, [begun, begun], [{"step": 2, "prompt": HOSTILE, "text": HOSTILE}], HOSTILE, HOSTILE)
    assert is_harmless(text)
    assert any("<script>alert(1)</script>" in shown for shown in texts(text, "pre"))


@pytest.mark.parametrize(
    "rows", [[], [{"step": 1}], [row(1, **{"learning/loss": None})], [{"step": 3, "tokens": "x", "learning/loss": []}]]
)
def test_a_run_with_nothing_to_draw(rows: list[dict[str, Any]]):
    assert is_harmless(page(rows=rows, starts=[]))
    assert is_harmless(page(rows=rows, starts=[{"step": "x", "mesh": 3, "memory": [], "time": None}]))


@pytest.mark.parametrize("recipe", STRUCTURES)
def test_a_run_of_every_structure_has_a_page(recipe: str, tmp_path: Path):
    run, config = RunDirectory(tmp_path), RECIPES[recipe]()
    run.write_config(to_json(config))
    run.metrics.write_text("".join(f"{json.dumps(row(step))}\n" for step in (1, 2, 3)))
    write_rows(run.starts, [start(config, fsdp=2)])
    assert main(Arguments(str(run)), Console()) == {"report": f"{run}/report.html"}
    assert is_harmless(run.page.read_text())
    assert "÷ fsdp" in run.page.read_text()


NUMBERS = st.floats(allow_nan=False) | st.integers() | st.sampled_from([None, True, "x", [], {}, 5e-324, 1 + 2**-52])
NAMES = ["learning/loss", "learning/grad_norm", "learning/nonfinite_steps", "eval/nats_per_token", "eval/x", "perf/mfu"]
ROWS = st.fixed_dictionaries(
    {"step": st.integers(0, 2**62) | NUMBERS, "tokens": st.integers(0, 2**70) | NUMBERS},
    optional=dict.fromkeys((*NAMES, "time", "time/steps_seconds", "perf/memory_bytes"), NUMBERS),
)
STARTS = st.fixed_dictionaries(
    {"step": st.integers(0, 9) | NUMBERS},
    optional={"time": NUMBERS, "mesh": NUMBERS, "memory": st.dictionaries(st.sampled_from(["step", "limit"]), NUMBERS)},
)


@given(rows=st.lists(ROWS, max_size=6), starts=st.lists(STARTS, max_size=3))
@settings(max_examples=40)
def test_whatever_rows_hold_there_is_a_page(rows: list[dict[str, Any]], starts: list[dict[str, Any]]):
    assert is_harmless(page(rows=rows, starts=starts))


def test_restarts_and_steps_that_changed_nothing_are_marked():
    rows = [row(step, **{"learning/nonfinite_steps": (step >= 5) + 2 * (step >= 8)}) for step in range(1, 11)]
    config = config_of()
    text = page(config, rows, [start(config), start(config, 4)])
    notes = texts(text)
    assert any(note.startswith("restarted behind step 4 ") for note in notes)
    assert any(note.startswith("1 step up to step 5 had gradients that were not finite") for note in notes)
    assert any(note.startswith("2 steps up to step 8 ") for note in notes)
    assert not any("restarted" in note for note in texts(page(config)))


def test_a_mesh_shows_what_lies_where():
    config = config_of()
    text = page(config, starts=[start(config, data=2, fsdp=2, tensor=4)])
    chips = {shown.get("class"): "".join(shown.itertext()) for shown in ElementTree.fromstring(text).iter("span")}
    assert "16 devices. The weights lie in 8 parts" in text
    assert chips["chip copied"] == "kv_heads 2, copied over tensor"
    assert "embed 16 ÷ fsdp" in text
    assert "batch 32 ÷ data x fsdp" in text
    places = [e.get("title") for e in ElementTree.fromstring(text).iter("span") if "cell" in e.get("class", "")]
    assert len(places) == 16
    assert places[-1] == "data 1, fsdp 1, tensor 3"
    many = page(config_of(batch_size=4096), starts=[start(config, data=1024, fsdp=2)])
    assert "2,048 devices" in many
    assert "64 of them are drawn" in many


def test_what_differs_from_the_recipe_is_marked():
    config = dataclasses.replace(RECIPES["smoke"](), steps=77)
    rows = {cells[0]: cells[1:] for cells in cells_of(page(config)) if len(cells) == 3}
    assert rows["steps"] == ["77", str(RECIPES["smoke"]().steps)]
    assert "seed" not in rows
    assert "mine is no recipe that comes with jumok" in page()


def cells_of(text: str) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in each] for each in ElementTree.fromstring(text).iter("tr")]


def test_what_a_run_does_is_said(tmp_path: Path):
    run, config = RunDirectory(tmp_path / "run"), config_of()
    declared = DECLARED

    def state() -> str:
        return next(e.text or "" for e in ElementTree.fromstring(run.page.read_text()).iter("span"))

    with run.lock():
        run.metrics.write_text(json.dumps(row(3)) + "\n")
        write_page(run, config, declared)
        assert state() == "running"
        assert "reload it then" in run.page.read_text()
    write_page(run, config, declared)
    assert state() == "stopped"
    with pytest.raises(RuntimeError), Page(run, config, declared, print):
        raise RuntimeError("the device is on fire")
    assert state() == "failed"
    assert "the device is on fire" in run.page.read_text()
    run.metrics.write_text("".join(f"{json.dumps(row(step))}\n" for step in (3, 10)))
    write_page(run, config, declared)
    assert state() == "finished"


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path: Path):
    run, config, said = RunDirectory(tmp_path / "run"), config_of(), []
    run.create()
    run.page.mkdir()  # a folder in its place
    with Page(run, config, {}, said.append) as written:
        written.write()
        written.write(None)
    assert len(said) == 1
    assert "report.html could not be written" in said[0]


def test_a_page_takes_its_share_of_the_time_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, config, written = RunDirectory(tmp_path / "run"), config_of(), []
    monkeypatch.setattr("train.page.page.write_page", lambda *arguments: (time.sleep(0.01), written.append(arguments)))
    with Page(run, config, {}, print) as page:
        for _ in range(100):
            page.write()
    assert len(written) == 2, "the first, and when it ends"


def test_thinning_keeps_the_first_the_last_and_what_stands_out():
    draw = random.Random(0)
    points = [Measured(step, 2 * step, draw.random()) for step in range(1, 20_001)]
    points[7_000] = points[7_000]._replace(value=99.0)
    points[3] = points[3]._replace(value=-99.0)
    kept = thin(points, 600)
    assert len(kept) <= 600
    assert kept == sorted(set(kept))
    assert {points[0], points[3], points[7_000], points[-1]} <= set(kept)
    assert sum(point.step <= 100 for point in kept) > 50, "on a logarithmic axis the beginning is wide"
    assert thin(points[:600], 600) == points[:600]


def test_a_long_run_has_a_small_page(tmp_path: Path):
    path = RunDirectory(tmp_path).metrics
    rows = [row(10 * step, **{"learning/loss": 2 + step % 7}) for step in range(1, 17_001)]
    rows[9_000]["learning/loss"] = 1e4
    path.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    history = History()
    history.read_on(path)
    assert all(len(curve) <= 16_000 for curve in history.curves.values())
    assert max(point.value for point in history.curve("learning/loss", 640)) == 1e4
    config = config_of(steps=170_000)
    text = page_of("long", config, DECLARED, history, "finished", [], [], {})
    assert len(text) < 600_000
    assert is_harmless(text)


def test_rows_are_read_on(tmp_path: Path):
    path, history = RunDirectory(tmp_path).metrics, History()
    history.read_on(path)
    path.write_text(json.dumps(row(1)) + "\nno row\n[3]\n" + json.dumps(row(2))[:-5])
    history.read_on(path)
    assert history.last == row(1)
    path.write_text("".join(f"{json.dumps(row(step))}\n" for step in (1, 2)).replace("\n", "\nno row\n[3]\n", 1))
    history.read_on(path)
    assert history.last == row(2)
    history.add(row(2, tokens=7))
    assert [point.step for point in history.curve("learning/loss")] == [1, 2], "a step has one row"


def test_axes_have_round_numbers():
    assert Axis.up([1.7, 9.2]).ticks == (0, 2, 4, 6, 8, 10)
    assert Axis.up([2.03, 2.11]).ticks == (2.02, 2.04, 2.06, 2.08, 2.1, 2.12)
    assert Axis.up([3.0], from_zero=True).ticks == (0, 0.5, 1, 1.5, 2, 2.5, 3)
    assert Axis.up([]).ticks[0] == 0
    assert Axis.up([5.0, 5.0]).place(5.0) == 0
    assert Axis.up([0.02, 30.0], is_log=True).ticks == (0.03, 0.1, 0.3, 1, 3, 10, 30)
    assert Axis.across([0, 2400]).ticks == (0, 500, 1000, 1500, 2000)
    log = Axis.across([0, 1, 1e6], is_log=True)
    assert (log.low, log.ticks) == (1, (1, 10, 100, 1e3, 1e4, 1e5, 1e6))
    assert log.place(1e3) == pytest.approx(0.5)
    assert log.place(0) == 0


def test_elements_are_escaped():
    assert element("p", "<b>", element("b", "&"), class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;<b>&amp;</b></p>'
    assert element("input", checked="", id=None) == '<input checked=""/>'


def test_training_writes_its_page_and_samples_on_its_way(small: RunConfig, tmp_path: Path, capsys):
    changes = {"steps": 4, "sample": SampleConfig(tokens=3, every=2), "evaluate": EvaluateConfig(every=2, tokens=200)}
    config = dataclasses.replace(small, run_dir=str(tmp_path / "run"), **changes)
    train(dataclasses.replace(config, stop_after=3), Console())
    run = RunDirectory(config.folder)
    assert [sample["step"] for sample in read_rows(run.samples)] == [2, 3]
    assert "stopped" in texts(run.page.read_text(), "h1")[0]
    train(config, Console())
    assert [sample["step"] for sample in read_rows(run.samples)] == [2, 3, 4]
    assert [begun["step"] for begun in read_rows(run.starts)] == [0, 3]
    text = run.page.read_text()
    assert is_harmless(text)
    assert "finished" in texts(text, "h1")[0]
    assert "after step 4" in texts(text, "summary")
    assert any(note.startswith("restarted behind step 3") for note in texts(text))
    assert set(texts(text, "h2")) >= {"Where the time went", "Memory of a device", "Mesh", "Starts"}
    assert str(run.page) in capsys.readouterr().out


def test_samples_of_a_lost_stretch_are_replaced(tmp_path: Path):
    run = RunDirectory(tmp_path)
    write_rows(run.samples, [{"step": 2, "text": "a"}, {"step": 4, "text": "b"}])
    history = History()
    history.add(row(3))
    config = config_of()
    text = page_of("x", config, DECLARED, history, "running", [], read_rows(run.samples), {})
    assert texts(text, "summary")[0] == "after step 2"


def test_texts_of_no_tokens_are_refused():
    with pytest.raises(ValueError, match=r"sample.every=5 asks for texts of no tokens; pass --sample.tokens too"):
        validate(config_of(data=DataConfig(max_length=32), sample=SampleConfig(tokens=0, every=5)))
