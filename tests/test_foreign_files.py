"""Files of strangers: two thousand damaged ones are read or refused, hostile ones refused by name, and none is run."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save_file

from data.classes import order_classes
from data.dataset import DataConfig, open_sources
from data.foreign_shards import open_foreign
from data.image_files import Shape, find_images
from data.reading import Reading
from data.sources import open_source
from data.tokenizers import trial
from data.tokenizers.base import Tokenizer
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.sentence_piece import train_sentencepiece
from model.decoder import DecoderConfig
from train.checkpoint import Checkpoints
from train.command import dispatch
from train.config import RunConfig, to_json
from train.export import import_folder
from train.load import load_run, load_source
from train.mesh import MeshConfig
from train.recipes import find_recipe
from train.run_directory import RunDirectory
from train.state import blueprint

ROOT = Path(__file__).resolve().parent.parent
MODEL = DecoderConfig(num_layers=1, model_dim=8, num_heads=2, vocab_size=257, max_length=16)


def test_two_thousand_damaged_files(tmp_path: Path):
    """While these, and before them whole files of every kind, are read, an audit hook hears what is done.

    Nothing is unpickled or run, no connection opened, and nothing written outside of the cache.
    """
    command = [sys.executable, str(ROOT / "tests" / "drill" / "foreign_files.py"), "--json", "--inputs", "2000"]
    done = subprocess.run([*command, "--folder", str(tmp_path / "drill")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["fell"] == []
    assert sum(sum(counts.values()) for counts in found["counts"].values()) == 2000
    # Damage that nothing sees proves nothing, and neither does damage that leaves nothing to read.
    for kind in (
        "model",
        "tokenizer",
        "sentencepiece",
        "run",
        "jsonl",
        "parquet",
        "idx",
        "npz",
        "megatron",
        "pictures",
    ):
        assert found["counts"][kind].keys() >= {"read", "refused"}, kind


# Hostile files. Each writes itself into a folder and gives the call that reads it; beside it the sentence that refuses.


def golden(folder: Path) -> Callable[[], Any]:
    """A small GPT-2 as a folder of Hugging Face."""
    with np.load(ROOT / "tests" / "golden" / "gpt2.npz", allow_pickle=False) as file:
        tensors = {key.removeprefix("weight/"): file[key] for key in file.files if key.startswith("weight/")}
        (folder / "config.json").write_text(str(file["config"]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return lambda: import_folder(folder)


def model(**files: Any) -> Callable[[Path], Callable[[], Any]]:
    """That folder with other files; of a dict, the keys are put into the JSON that is there."""

    def write(folder: Path) -> Callable[[], Any]:
        read = golden(folder)
        content: Any
        for name, content in files.items():
            file = folder / name.replace("__", ".")
            if callable(content):
                content = content(file.read_bytes())
            elif isinstance(content, dict):
                content = json.dumps((json.loads(file.read_text()) if file.exists() else {}) | content).encode()
            file.write_bytes(content)
        return read

    return write


def weights(header: Any, data: bytes = b"", size: int | None = None) -> Callable[[Path], Callable[[], Any]]:
    """That folder with weights of such a header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return model(model__safetensors=struct.pack("<Q", len(text) if size is None else size) + text + data)


def entry(begin: int, end: int, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def index(weight_map: Any) -> Callable[[Path], Callable[[], Any]]:
    """That folder with an index in place of its weights."""

    def write(folder: Path) -> Callable[[], Any]:
        read = golden(folder)
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        content = weight_map if isinstance(weight_map, bytes) else json.dumps({"weight_map": weight_map}).encode()
        (folder / "model.safetensors.index.json").write_bytes(content)
        return read

    return write


def a_link_to_a_link(folder: Path) -> Callable[[], Any]:
    read = index({"a": "part-2.safetensors"})(folder)
    (folder.parent / "outside").write_bytes((folder / "part.safetensors").read_bytes())
    (folder / "inner").symlink_to(folder.parent / "outside")
    (folder / "part-2.safetensors").symlink_to(folder / "inner")
    return read


def a_header_of_gigabytes(folder: Path) -> Callable[[], Any]:
    read = weights(b"{}", size=1 << 33)(folder)
    os.truncate(folder / "model.safetensors", 1 << 34)  # a hole, which takes no space
    return read


def written(name: str, content: bytes, read: Callable[[str], Any]) -> Callable[[Path], Callable[[], Any]]:
    """A file, and what reads it."""

    def write(folder: Path) -> Callable[[], Any]:
        (folder / name).write_bytes(content)
        return lambda: read(str(folder / name))

    return write


def texts(path: str, **reading: Any) -> int:
    return sum(len(block.text) for block in open_source(path, Reading(**reading)).blocks())


def images(path: str) -> Any:
    found = find_images(path)
    return found.labels(found.classes)


def npz(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, stored in members:
            archive.writestr(f"{name}.npy", stored)
    return content.getvalue()


def npy(shape: str, dtype: str = "|u1", data: bytes = b"") -> bytes:
    """An array whose head says anything."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + data


LABELS = npy("(2,)", data=b"\0\1")


class Runs:
    """Whose pickle makes a folder when it is opened."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.path.join(os.environ["JUMOK_CACHE"], "was-run"),)


OBJECTS = npy("(2,)", "|O", pickle.dumps([Runs(), Runs()]))


def idx_bomb(folder: Path) -> Callable[[], Any]:
    image = struct.pack(">HBB3I", 0, 8, 3, 1 << 20, 8, 8) + bytes(1 << 26)
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(image, 9))
    (folder / "labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01"))
    return lambda: images(str(folder / "images-idx3-ubyte.gz"))


def pictures(head: bytes) -> Callable[[Path], Callable[[], Any]]:
    def write(folder: Path) -> Callable[[], Any]:
        for name in ("cat", "dog"):
            (folder / name).mkdir()
            (folder / name / "1.png").write_bytes(head)
        return lambda: find_images(str(folder)).check(Shape(8, 3, resize=True))

    return write


def png(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def a_pipe(folder: Path) -> Callable[[], Any]:
    os.mkfifo(folder / "a.jsonl")
    return lambda: texts(str(folder))


def an_endless_device(folder: Path) -> Callable[[], Any]:
    (folder / "a.txt").symlink_to("/dev/zero")
    return lambda: texts(str(folder))


def megatron(folder: Path) -> Callable[[], Any]:
    (folder / "a.bin").write_bytes(bytes(64))
    (folder / "a.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1 << 62, 1 << 62))
    return lambda: open_foreign(str(folder / "a"), ByteTokenizer())


def tokenizer(**changes: Any) -> Callable[[Path], Callable[[], Any]]:
    """A tokenizer.json with other parts; what runs it."""
    parts: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2}, "merges": []}
    whole = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None}
    whole |= {"decoder": None, "truncation": None, "padding": None, "model": parts | changes.pop("model", {})}

    def write(folder: Path) -> Callable[[], Any]:
        (folder / "tokenizer.json").write_text(json.dumps(whole | changes))
        return lambda: use(load_tokenizer(folder))

    return write


def use(found: Tokenizer) -> str:
    return found.decode(found.encode("a" * 100 + "b"))


def replaced(*steps: tuple[Any, str]) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": old, "content": new} for old, new in steps],
    }


def split_at(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@cache
def files_of_a_run() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(folder)
        with Checkpoints(directory.checkpoints, writer=True) as checkpoints:
            checkpoints.save(0, {"params": blueprint(MODEL).init(0)}, {"step": 0})
        directory.write_config(to_json(RunConfig(model=MODEL, data=DataConfig(max_length=16))))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run(change: Callable[[RunDirectory], Any]) -> Callable[[Path], Callable[[], Any]]:
    """A run directory, and something done to it."""

    def write(folder: Path) -> Callable[[], Any]:
        for name, content in files_of_a_run().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        change(RunDirectory(folder))
        return lambda: load_run(str(folder))

    return write


def configured(content: bytes | dict[str, Any]) -> Callable[[Path], Callable[[], Any]]:
    """A run directory with another config.json, or with other values in it."""

    def change(directory: RunDirectory) -> None:
        if isinstance(content, dict):
            directory.write_config(json.loads(directory.config.read_text()) | content)
        else:
            directory.config.write_bytes(content)

    return run(change)


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Callable[[], Any]]:
    """A run directory whose checkpoint has another manifest, with a digest that fits."""

    def edit(directory: RunDirectory) -> None:
        file = directory.checkpoints / "0" / "manifest" / "metadata"
        value = json.loads(file.read_text())
        del value["sha256"]
        change(value)
        value["sha256"] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        file.write_text(json.dumps(value))

    return run(edit)


def code_in_a_saved_configuration(folder: Path) -> Callable[[], Any]:
    return lambda: open_sources(DataConfig(path="os:getcwd"))


def code_in_a_recipe(folder: Path) -> Callable[[], Any]:
    config = to_json(RunConfig(model=MODEL, data=DataConfig(path="os:getcwd")))
    (folder / "config.json").write_text(json.dumps(config))
    return lambda: find_recipe(str(folder / "config.json"))


def bytes_in_place_of_a_source(folder: Path) -> Callable[[], Any]:
    (folder / "config.json").write_bytes(b'{"architectures": ["\xff"]}')
    return lambda: load_source(str(folder), MeshConfig())


ZEROS = bytes(1 << 26)
SPACES = b" " * (1 << 26)
DEEP = b"[" * 100_000
NO_SAFETENSORS = r"model\.safetensors is damaged or is not a safetensors file \(.*"
HOSTILE: dict[str, tuple[Callable[[Path], Callable[[], Any]], str]] = {
    # Folders of Hugging Face
    "a link to a link out of the folder": (a_link_to_a_link, "part-2.safetensors is a link out of the folder"),
    "a name that no file can have": (index({"a": "\ud800.safetensors"}), "is no name of a file; a name is printable"),
    "a name without end": (index({"a": "a" * 5000 + ".safetensors"}), "'a{80}' is no name of a file"),
    "a tensor in two files": (
        index(b'{"weight_map": {"a": "part.safetensors", "a": "other.safetensors"}}'),
        r"model\.safetensors\.index\.json is not valid JSON \(the key 'a' is there twice\)",
    ),
    "a header of gigabytes": (a_header_of_gigabytes, NO_SAFETENSORS + "speaks of a header of 8,589,934,592 bytes"),
    "a header of brackets": (weights(b'{"__metadata__":' + DEEP + b"}"), NO_SAFETENSORS),
    "tensors that overlap": (weights({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), NO_SAFETENSORS),
    "a hole between tensors": (weights({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), NO_SAFETENSORS),
    "a tensor behind the end": (weights({"a": entry(1 << 40, (1 << 40) + 4)}, bytes(4)), NO_SAFETENSORS),
    "a tensor that ends before it begins": (weights({"a": entry(4, 0)}, bytes(4)), NO_SAFETENSORS),
    "a shape that overflows": (weights({"a": entry(0, 0, (1 << 63, 2), "BF16")}), NO_SAFETENSORS),
    "a shape below zero": (weights({"a": entry(0, 4, (-1, -1))}, bytes(4)), NO_SAFETENSORS),
    "a type of objects": (weights({"a": entry(0, 4, dtype="OBJECT")}, bytes(4)), NO_SAFETENSORS),
    "code for a model": (model(config__json={"trust_remote_code": True}), "trust_remote_code=true asks for code"),
    "code for special tokens": (
        model(special_tokens_map__json={"auto_map": {"AutoTokenizer": "x.Y"}}),
        "special_tokens_map.json: auto_map asks for code",
    ),
    "an architecture that is code": (
        model(config__json={"architectures": ["os:system"]}),
        "config.json: the architecture os:system is not known",
    ),
    "a number without end": (model(config__json=b'{"n_layer": ' + b"9" * 5000 + b"}"), "config.json is not valid JSON"),
    "a number that is infinite": (
        model(config__json=lambda content: content.replace(b"1e-05", b"1e999")),
        "config.json: layer_norm_epsilon=Infinity must be a finite number",
    ),
    "no number in generation": (
        model(generation_config__json=b'{"top_k": NaN}'),
        "generation_config.json is not valid",
    ),
    "no text where a source is named": (bytes_in_place_of_a_source, "config.json is not valid JSON"),
    # Runs
    "a configuration of brackets": (configured(b'{"model": ' + DEEP), "config.json is not valid JSON"),
    "a field twice": (configured(b'{"seed": 1, "seed": 2}'), r"config.json is not valid JSON \(the key 'seed' is"),
    "an infinite field": (configured(b'{"hang_seconds": Infinity}'), "config.json is not valid JSON"),
    "an objective that is code": (
        configured({"objective": {"type": "os:system"}}),
        "config.json: objective.type must be one of .*, got 'os:system'",
    ),
    "a model larger than any memory": (
        configured({"model": to_json(MODEL) | {"type": "Decoder", "num_layers": 10**30}}),
        r"has shape \[1, .*\], and this run needs \[1000000",
    ),
    "code in a saved configuration": (code_in_a_saved_configuration, "the data path os:getcwd names code, and code"),
    "code in a recipe": (code_in_a_recipe, "config.json: data.path names code, os:getcwd, and what a file names"),
    "a manifest of brackets": (
        run(lambda directory: (directory.checkpoints / "0" / "manifest" / "metadata").write_bytes(DEEP)),
        "0: it has no readable manifest",
    ),
    "a manifest that describes no array": (
        manifest(lambda value: value.update(arrays=dict.fromkeys(value["arrays"], 3))),
        "0: its manifest does not describe a checkpoint",
    ),
    "a manifest without a record": (manifest(lambda value: value.update(record=[])), "0: its manifest does not desc"),
    # Tokenizers
    "a pattern that takes for ever": (
        tokenizer(pre_tokenizer=split_at("(a+)+c")),
        r"tokenizer.json \(it made the library panic: .*retry-limit",
    ),
    "texts that double": (tokenizer(normalizer=replaced(*[({"String": "a"}, "aa")] * 40)), "tokenizer.json a text can"),
    "texts that swell between letters": (tokenizer(normalizer=replaced(({"Regex": ""}, "x" * 90))), "over 64 times"),
    "merges of no token": (tokenizer(model={"merges": ["a c"]}), r"this tokenizer \(tokenizer.json\) cannot be run"),
    "a decoder beyond its end": (
        tokenizer(decoder={"type": "Strip", "content": "a", "start": 1 << 60, "stop": 1 << 60}),
        "tokenizer.json",
    ),
    "a vocabulary of brackets": (
        written("tokenizer.json", b'{"model": ' + DEEP, lambda path: load_tokenizer(path).encode("a")),
        r"this tokenizer \(tokenizer.json\) cannot be run",
    ),
    "a description of brackets": (
        written("jumok_tokenizer.json", DEEP, load_tokenizer),
        "jumok_tokenizer.json is damaged",
    ),
    # Text
    "a bomb of one line": (written("a.jsonl.gz", gzip.compress(SPACES, 9), texts), "a.jsonl.gz is damaged after byte"),
    "a bomb of text": (written("a.txt.zst", zstandard.compress(SPACES), texts), "a.txt.zst is damaged after byte"),
    "a bomb within a bomb": (
        written("a.csv.gz", gzip.compress(b"text\n") + gzip.compress(SPACES, 9), texts),
        "a.csv.gz is damaged after byte",
    ),
    "a record of brackets": (written("a.json", b'[{"text": "a"},' + DEEP, texts), "a.json, record 2, is not JSON"),
    "a record of digits": (
        written("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", texts),
        "a.jsonl:1 is not JSON",
    ),
    "a pipe among texts": (a_pipe, "a.jsonl cannot be read: it is no regular file"),
    "a device among texts": (an_endless_device, "a.txt cannot be read: it is no regular file"),
    # Images
    "images that are a pickle": (
        written("a.npz", npz(("images", OBJECTS), ("labels", LABELS)), images),
        "a.npz holds no array of numbers as images",
    ),
    "labels that are a pickle": (
        written("a.npz", npz(("images", npy("(2, 1, 1)", data=b"\0\0")), ("labels", OBJECTS)), images),
        "a.npz holds no array of numbers as labels",
    ),
    "images whose size overflows": (
        written("a.npz", npz(("images", npy(f"({1 << 40}, {1 << 40}, 3)")), ("labels", LABELS)), images),
        "a.npz holds no array of numbers as images",
    ),
    "images that are code": (
        written("a.npz", npz(("images", npy("__import__('os').getcwd()")), ("labels", LABELS)), images),
        "a.npz holds no array of numbers as images",
    ),
    "images under a path": (
        written("a.npz", npz(("../../images", LABELS), ("/labels", LABELS)), images),
        "a.npz holds the arrays ../../images, /labels, and",
    ),
    "a bomb of images": (
        written("a.npz", npz(("images", npy(f"({1 << 20}, 8, 8)", data=ZEROS)), ("labels", LABELS)), images),
        "a.npz has .* bytes, and images in it 67,",
    ),
    "a bomb in IDX": (idx_bomb, "images-idx3-ubyte.gz is damaged after byte"),
    "an IDX of all dimensions": (
        written("a", b"\0\0\x08\xff" + b"\xff" * 4 * 255, images),
        "a holds an array of 255 dimensions",
    ),
    "an IDX without end": (written("a-images", b"\0\0\x08\x03" + b"\xff" * 12, images), "a-images has 16 bytes, and"),
    "a picture of ten gigapixels": (pictures(png(100_000, 100_000)), "1.png is no picture that can be read"),
    **{
        f"a WebP of its form {form} without end": (
            pictures(b"RIFF\x88\0\0\0WEBP" + form.encode() + b"|\0\0\0" + b"\xff" * 100),
            "1.png is no picture that can be read .* pixels, and 40,000,000 are read at most",
        )
        for form in ("VP8X", "VP8L", "VP8 ")
    },
    "a picture that is a program": (
        pictures(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n"),
        "1.png is no picture that can be read",
    ),
    # Shards
    "an index of more than there is": (megatron, "a.idx has 34 bytes, and its header speaks of"),
    "less than no tokens": (
        written(
            "a.bin", struct.pack("<3i", 20240520, 1, -1) + bytes(1012), lambda path: open_foreign(path, ByteTokenizer())
        ),
        "a.bin has 1024 bytes, and its header speaks of 1022",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write, sentence = HOSTILE[name]
    (folder := tmp_path / "folder").mkdir()
    read = write(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=sentence) as refusal:
        read()
    assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (Path(os.environ["JUMOK_CACHE"]) / "was-run").exists()
    capfd.readouterr()  # the tokenizers library has its say on standard error


# What no load path reaches: test_architecture.py walks the syntax trees for it, and every reader of the drill is heard


DEEDS = (
    r"pickle.loads(b'cos\ngetcwd\n.')",
    "exec('1')",
    "eval('1')",
    "socket.socket().connect_ex(('127.0.0.1', 9))",
    "open(OUTSIDE, 'w')",
    "os.rename(INSIDE, OUTSIDE)",
    "os.symlink(INSIDE, OUTSIDE + '-link')",
    "os.system('true')",
    "subprocess.run(['true'])",
)


def test_the_audit_hook_hears(tmp_path: Path):
    (tmp_path / "inside").mkdir()
    lines = [
        "import os, pathlib, pickle, socket, subprocess",
        "from watch import Watch",
        f"INSIDE, OUTSIDE = {str(tmp_path / 'inside' / 'file')!r}, {str(tmp_path / 'outside')!r}",
        f"watch = Watch([pathlib.Path({str(tmp_path / 'inside')!r})])",
        "open(INSIDE, 'w').close()",
        "print(len(watch.seen()))",
        *(f"{deed}; print(len(watch.seen()))" for deed in DEEDS),
    ]
    script = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT / "tests" / "drill", check=False)
    nothing, *heard = map(int, done.stdout.split())
    assert nothing == 0
    assert len(heard) == len(DEEDS), done.stderr[-2000:]
    assert all(heard), heard


# Tokenizers in a process of their own


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SentencePiece dies of it, by signal 11"),
        ("raise RuntimeError('no model')", "SentencePiece cannot use it"),
        ("import time; time.sleep(60)", "SentencePiece has not loaded it after 0.5 seconds"),
    ],
)
def test_what_kills_sentencepiece_kills_a_child(
    worker: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "worker.py").write_text(worker)
    monkeypatch.setattr(trial, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(trial, "_SECONDS", 0.5 if "sleep" in worker else 60)
    (tmp_path / "tokenizer.model").write_bytes(os.urandom(64))
    with pytest.raises(ValueError, match=rf"tokenizer.model: this is not .* a damaged one \({reason}\); give the file"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_a_model_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    trained = train_sentencepiece(["some text of a few words\n"] * 9, 300)
    (tmp_path / "tokenizer.model").write_bytes(trained.files["tokenizer.model"])
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "another"))  # as on the machine of whoever is given the file
    assert load_tokenizer(tmp_path).digest == trained.digest
    monkeypatch.setattr(trial, "_WORKER", tmp_path / "absent")
    assert load_tokenizer(tmp_path).digest == trained.digest
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))  # where it was made
    assert load_tokenizer(tmp_path).digest == trained.digest


# What is read, and was not


def test_labels_of_more_digits_than_python_reads_are_names():
    assert order_classes(["2", "10"], "here") == ("2", "10")
    assert order_classes(["2", "9" * 5000, "10"], "here") == ("10", "2", "9" * 5000)


# What is said


def test_what_a_file_calls_itself_does_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]):
    assert dispatch(["train", "nothing\n\x1b[2Jof.the\u202ekind"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert r"nothing\n\x1b[2Jof.the\u202ekind" in said
