"""What is no file is copied once, goes on where it was interrupted, and is then text like any other."""

import json
import os
import sys

import pytest

from data import copies
from data.cache import cache_folder
from data.reading import Reading
from data.sources import open_source, split_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging_face"))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the working directory, under a name that nothing else has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(code):
        name = f"own_{tmp_path.name}_{len(written)}"
        (tmp_path / f"{name}.py").write_text(code)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def read(path, column="text"):
    return list(open_source(path, Reading(column), allow_code=True).texts())


OWN = """
import numpy as np

reads = []

class Items:
    def __len__(self):
        return 10

    def __getitem__(self, index):
        reads.append(index)
        return {"text": f"text {index}", "label": np.int64(index), "score": 0.5, "image": b"png", "more": [1]}

class Known(Items):
    digest = "the first version"

def texts():
    return ["one", "", "세 번째"]
"""


def test_a_random_access_source(module, monkeypatch):
    name = module(OWN)
    monkeypatch.setattr(copies, "_FILE_BYTES", 100)
    source = open_source(f"{name}:Items", allow_code=True)
    assert list(source.texts()) == [f"text {i}" for i in range(10)]
    assert len(source.parts) > 2
    with open(source.parts[0].path) as file:
        assert json.loads(file.readline()) == {"text": "text 0", "label": 0, "score": 0.5}
    assert read(f"{name}:texts") == ["one", "", "세 번째"]
    assert list(open_source(f"{name}:Items", Reading(response="{label}"), allow_code=True).texts())[-1] == "9"
    train, valid = split_source(source)
    assert sorted([*train.texts(), *valid.texts()]) == [f"text {i}" for i in range(10)]
    # It is behind everything else on the path, and stands there once.
    assert sys.path.count(os.getcwd()) == 1
    assert sys.path[-1] == os.getcwd()


def test_a_source_with_a_digest_is_read_once(module, monkeypatch):
    name = module(OWN)
    reads = []
    for _ in range(2):
        assert read(f"{name}:Known") == [f"text {i}" for i in range(10)]
        reads.append(len(sys.modules[name].reads))
    assert reads == [10, 10]
    with monkeypatch.context() as read_only:
        read_only.setattr(copies, "cache_folder", None)
        read(f"{name}:Known")
    changed = sys.modules[name]
    changed.Known.digest = "the second version"
    digests = {open_source(f"{name}:Known", allow_code=True).digest}
    assert len(changed.reads) == 20
    # Without one, all items are its identity: others are another copy.
    digests.add(open_source(f"{name}:Items", allow_code=True).digest)
    assert len(digests) == 1
    changed.Items.__getitem__ = lambda self, index: f"other {index}"
    assert read(f"{name}:Items")[0] == "other 0"


def test_code_is_only_run_where_it_is_allowed(module):
    name = module("raise SystemExit('it was run')")
    with pytest.raises(
        ValueError,
        match=rf"{name}:texts names code, and .* is never run; name it once more with --data.path {name}:tex",
    ):
        open_source(f"{name}:texts")
    # A file of such a name is a file.
    with open(f"{name}:texts", "w") as file:
        file.write("text")
    with pytest.raises(ValueError, match=r"has a suffix that is not read"):
        open_source(f"{name}:texts")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("", r"the source own_\w+:make cannot be found: module 'own_\w+' has no attribute 'make'; name"),
        ("def make(:", r"source own_\w+:make cannot be imported \(SyntaxError: .* line 1\)\); mend it"),
        ("import no_such_module", r"source own_\w+:make cannot be found: No module named 'no_such_module'; correct"),
        ("1 / 0", r"source own_\w+:make cannot be imported \(ZeroDivisionError: division by zero\); mend it"),
        ("make = 3", r"own_\w+:make is int and cannot be called; name a function or a class"),
        ("def make(): return iter('abc')", r"own_\w+:make gives str_\w*iterator, which has no __len__ and __getitem__"),
        ("def make(): return [1]", r"item 0 of own_\w+:make is neither a text nor a dict of columns but int"),
        (
            "def make(): return ['a', {'b': [1]}]",
            r"item 1 of own_\w+:make has no column of text or numbers; found 'b' \(l",
        ),
        (
            "class make(list):\n  digest = '1'\n  def __init__(self): super().__init__(['a', None, 'b'])",
            r"item 1 of own_\w+:make is neither a text nor a dict of columns but NoneType",
        ),
        ("def make(): return [{}]", r"item 0 of own_\w+:make has no column of text or numbers; found none"),
        ("def make(): return {0: 'a', 2: 'b'}", r"own_\w+:make cannot be read \(KeyError: 1\); mend it, or run again"),
        ("def make(): return 1 / 0", r"own_\w+:make fails \(ZeroDivisionError: division by zero\); mend it"),
        ("def make(): return ['\\ud800']", r"00000.jsonl:1 is not UTF-8 text in the column 'text'"),
    ],
)
def test_sources_that_cannot_be(module, code, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        read(f"{module(code)}:make")
    assert "\n" not in str(error.value)


def test_no_such_module():
    with pytest.raises(ValueError, match=r"the source no_such_module:make cannot be found: No module named"):
        open_source("no_such_module:make", allow_code=True)


def test_an_interrupted_copy_goes_on(module, monkeypatch):
    name = module(OWN)
    monkeypatch.setattr(copies, "_FILE_BYTES", 100)
    whole = read(f"{name}:Known")
    (folder,) = (cache_folder("code")).iterdir()
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "copy.json").unlink()
    for later in ("00002", "00003", "00004"):
        for path in folder.glob(f"{later}*"):
            path.unlink()
    (folder / "00002.jsonl").write_text("torn")  # whole as a file, but what follows it was not noted
    reads = sys.modules[name].reads
    reads.clear()
    told = []
    assert list(open_source(f"{name}:Known", allow_code=True, progress=lambda *now: told.append(now)).texts()) == whole
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert reads == list(range(6, 10))


# Hugging Face data sets, from folders on this machine


@pytest.fixture
def data_set(tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "data_set"
    folder.mkdir()
    for number in range(3):
        rows = [{"text": f"text {number} {i}", "label": i, "extra": {"a": [i]}} for i in range(40)]
        (folder / f"train-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


TEXTS = [f"text {number} {i}" for number in range(3) for i in range(40)]


def test_a_data_set(data_set, monkeypatch):
    monkeypatch.setattr(copies, "_FILE_BYTES", 1000)
    source = open_source(f"hub:{data_set}", Reading(suffixes=(".py",)))
    assert list(source.texts()) == TEXTS
    assert len(source.parts) > 3
    with open(source.parts[0].path) as file:
        assert json.loads(file.readline()) == {"text": "text 0 0", "label": 0}
    digest = source.digest
    # From then on, neither the library nor the network is asked, and nothing is written.
    monkeypatch.setattr(copies, "_library", None)
    monkeypatch.setattr(copies, "cache_folder", None)
    assert open_source(f"hub:{data_set}").digest == digest
    data_set.rename(data_set.with_name("moved"))
    assert open_source(f"hub:{data_set.with_name('moved')}").digest == digest


def test_an_interrupted_download_goes_on(data_set, monkeypatch):
    monkeypatch.setattr(copies, "_FILE_BYTES", 1000)
    guarded = copies._guarded
    monkeypatch.setattr(copies, "_guarded", lambda records, what: broken(guarded(records, what)))

    def broken(records):
        for number, record in enumerate(records):
            if number == 70:
                raise KeyboardInterrupt
            yield record

    with pytest.raises(KeyboardInterrupt):
        open_source(f"hub:{data_set}")
    (folder,) = cache_folder("hub").iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "00001.jsonl" in written
    assert "copy.json" not in written
    assert not any("tmp" in name for name in written)
    seen = []
    monkeypatch.setattr(copies, "_guarded", lambda records, what: (seen.append(r) or r for r in guarded(records, what)))
    assert list(open_source(f"hub:{data_set}").texts()) == TEXTS
    assert written.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()
    assert 50 <= len(seen) < 90


def test_a_data_set_with_a_configuration(data_set):
    for name in ("small", "large"):
        (data_set / name).mkdir()
        (data_set / name / "train.jsonl").write_text(json.dumps({"text": f"in {name}"}) + "\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("small", "large"))
    (data_set / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert list(open_source(f"hub:{data_set}:large").texts()) == ["in large"]
    assert list(open_source(f"hub:{data_set}:small").texts()) == ["in small"]
    with pytest.raises(ValueError, match=r"cannot be read \(ValueError: BuilderConfig 'none' not found") as error:
        open_source(f"hub:{data_set}:none")
    assert "\n" not in str(error.value)


def test_a_data_set_of_nothing_to_read(data_set):
    for path in data_set.iterdir():
        path.write_text('{"a": [1]}\n')
    with pytest.raises(ValueError, match=r"has no column of text or numbers"):
        open_source(f"hub:{data_set}")


def test_a_revision_is_the_commit_that_it_stood_for(monkeypatch):
    pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    commits = {None: "a" * 40, "v2": "b" * 40}

    class Api:
        def dataset_info(self, name, revision):
            if name != "owner/name":
                raise OSError("no such name\nand more")
            return type("Info", (), {"sha": commits[revision]})

    monkeypatch.setattr(hub, "HfApi", Api)
    asked = []
    monkeypatch.setattr(copies, "_copied", lambda name, what, records, progress: asked.append(name) or ["x.jsonl"])
    for name in ("owner/name", "owner/name@v2", f"owner/name@{'a' * 40}", "owner/name:config"):
        open_source(f"hub:{name}")
    assert asked[0] == asked[2]
    assert len(set(asked)) == 3
    with monkeypatch.context() as read_only:
        read_only.setattr(copies, "cache_folder", lambda _: pytest.fail("asked to write"))
        open_source("hub:owner/name")
    assert asked[-1] == asked[0]
    # Without a network, it is what it was.
    monkeypatch.setattr(Api, "dataset_info", None)
    open_source("hub:owner/name@v2")
    assert asked[-1] == asked[1]
    commits[None] = "c" * 40
    with pytest.raises(ValueError, match=r"hub:other/name cannot be found \(.*\); check the name and the network"):
        open_source("hub:other/name")
    with pytest.raises(ValueError, match=r"hub:a:b:c names no data set; write hub:OWNER/NAME, hub:OWNER/NAME:CONFIG"):
        open_source("hub:a:b:c")


def test_the_library_is_an_extra(data_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'hub: needs the datasets library; run pip install "jumok\[hub\]"'):
        open_source(f"hub:{data_set}")
