"""Small whole folders of every kind that is read here, made once: what the drill then damages.

Each kind has some folders, and `TARGETS` says which path of a folder its reader is given.
"""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import tokenizers
import zstandard
from PIL import Image
from safetensors.numpy import save_file

from data.dataset import DataConfig
from data.tokenizers.base import Tokenizer
from data.tokenizers.export import to_files
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from data.tokenizers.sentence_piece import train_sentencepiece
from data.tokenizers.tokenizer_json import byte_letters
from model.decoder import DecoderConfig
from train.checkpoint import Checkpoints
from train.config import RunConfig, to_json
from train.objectives.table import usual_objective
from train.run_directory import RunDirectory
from train.state import blueprint

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MODELS = (
    *("albert", "bart", "bert", "distilbert", "electra", "gpt2", "llama", "marian", "mbart", "megatron_bert", "palm"),
    *("roberta", "t5", "vit"),
)
WORDS = [
    "the",
    "cat",
    "sees",
    "an",
    "old",
    "house",
    "and",
    "nobody",
    "follows",
    "his",
    "own",
    "shadow",
    "to",
    "the",
    "river",
    "or",
    "paints",
    "seven",
    "letters",
]
TEXTS = [f"{' '.join(WORDS[n % 9 : n % 9 + 7])} {n}, caf\N{LATIN SMALL LETTER E WITH ACUTE}." for n in range(40)]

# What the reader of a kind is given: a path in its folder. Of others it is the folder itself.
TARGETS = {
    "idx": "train-images-idx3-ubyte",
    "idx.gz": "train-images-idx3-ubyte.gz",
    **{kind: f"data.{kind}" for kind in ("txt", "jsonl", "json", "csv", "tsv", "jsonl.gz", "txt.zst", "parquet")},
    "npz": "images.npz",
    "megatron": "text",
    "llm.c": "text.bin",
}


def make(folder: Path) -> dict[str, list[Path]]:
    """Writes all originals below a folder, and gives the folders of each kind."""
    kinds: dict[str, list[Path]] = {}
    for kind, name, write in _plans():
        place = folder / kind / name
        place.mkdir(parents=True)
        write(place)
        kinds.setdefault(kind, []).append(place)
    return kinds


def _plans() -> list[tuple[str, str, Callable[[Path], Any]]]:
    """The kind, the name and the writer of each original."""
    pieces = [train_sentencepiece(TEXTS, 310, model_type) for model_type in ("bpe", "unigram")]
    plans: list[tuple[str, str, Callable[[Path], Any]]] = [
        *(("model", name, lambda place, name=name: _write_model(place, name)) for name in MODELS),
        *(
            ("sentencepiece", model.model_type, lambda place, model=model: _write_foreign(place, model))
            for model in pieces
        ),
        *(("tokenizer", name, lambda place, files=files: _write(place, files)) for name, files in _libraries().items()),
        ("tokenizer", "bytes", lambda place: ByteTokenizer(("mask",)).save(place)),
        ("tokenizer", "characters", lambda place: CharacterTokenizer.of(TEXTS).save(place)),
        ("tokenizer", "ours", pieces[0].save),
        ("run", "run", _write_run),
        *((kind, kind, lambda place, kind=kind: _write_data(place, kind)) for kind in TARGETS),
        ("pictures", "pictures", _write_pictures),
    ]
    return plans


def _write(place: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (place / name).write_bytes(content)


def _write_model(place: Path, name: str) -> None:
    """A folder of Hugging Face; llama's weights lie in two files with an index."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as golden:
        config = next(key for key in golden.files if key.endswith("config"))  # of the first of several heads
        kept = config.replace("config", "tensors")
        weights = [key.removeprefix("weight/") for key in golden.files if key.startswith("weight/")]
        tensors = {key: golden[f"weight/{key}"] for key in (golden[kept].tolist() if kept in golden else weights)}
        (place / "config.json").write_text(str(golden[config]))
    if name == "vit":
        settings = {"do_resize": True, "image_mean": [0.5] * 2, "image_std": [0.5] * 2, "rescale_factor": 1 / 255}
        (place / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        (place / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    if name != "llama":
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, of_file in parts.items():
        save_file({name: tensors[name] for name in of_file}, place / file, metadata={"format": "pt"})
    weight_map = {name: file for file, of_file in parts.items() for name in of_file}
    index = {"metadata": {"total_size": sum(array.nbytes for array in tensors.values())}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_foreign(place: Path, tokenizer: Tokenizer) -> None:
    """A SentencePiece model as others give it: without a description of ours."""
    (place / "tokenizer.model").write_bytes(tokenizer.files["tokenizer.model"])
    (place / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def _libraries() -> dict[str, dict[str, bytes]]:
    """The files of tokenizers that the tokenizers library runs: of GPT-2's, BERT's, Llama's and T5's kinds."""
    letters = byte_letters()
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("a", "n")]
    vocabulary = [*letters, *("".join(pair) for pair in merges), "<|endoftext|>"]
    gpt2 = {
        "vocab.json": json.dumps({token: i for i, token in enumerate(vocabulary)}).encode(),
        "merges.txt": "".join(f"{a} {b}\n" for a, b in merges).encode(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
        ).encode(),
        "special_tokens_map.json": json.dumps({"unk_token": "<|endoftext|>"}).encode(),
    }
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert = {
        "vocab.txt": "".join(f"{token}\n" for token in [*marks, *WORDS, *"abcdefghijklmnopqrstuvwxyz", "##s"]).encode(),
        "tokenizer_config.json": json.dumps({"do_lower_case": True, "model_max_length": 512}).encode(),
        "added_tokens.json": b"{}",
    }
    pattern = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}|\s+"}, "behavior": "Isolated", "invert": False}
    by_letter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    llama = json.loads(to_files(ByteTokenizer())["tokenizer.json"])
    llama["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, by_letter]}
    llama["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "NFC"}, {"type": "Strip", "strip_left": True, "strip_right": True}],
    }
    unigram = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((word, -2.0) for word in ["\u2581", *WORDS])], 0)
    )
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    unigram.decoder = tokenizers.decoders.Metaspace()
    return {
        "gpt2": gpt2,
        "bert": bert,
        "llama": {
            "tokenizer.json": json.dumps(llama).encode(),
            "tokenizer_config.json": b'{"eos_token": "<|endoftext|>"}',
        },
        "t5": {"tokenizer.json": unigram.to_str().encode(), "tokenizer_config.json": b'{"eos_token": "</s>"}'},
    }


def _write_run(place: Path) -> None:
    """A run directory with a checkpoint."""
    model = DecoderConfig(num_layers=1, model_dim=8, num_heads=2, vocab_size=257, max_length=16)
    config = RunConfig(
        model=model, run_dir=str(place), objective=usual_objective(model), data=DataConfig(max_length=16)
    )
    run = RunDirectory(place)
    with Checkpoints(run.checkpoints, writer=True) as checkpoints:
        record = {"config": to_json(config), "step": 3, "examples_seen": 96, "evaluation": 4.5, "figures": {}}
        checkpoints.save(3, {"params": blueprint(model).init(0)}, record)
    ByteTokenizer().save(run.tokenizer)
    run.write_config(to_json(config))


def _write_data(place: Path, kind: str) -> None:
    _WRITERS[kind](place / (TARGETS[kind] if kind != "megatron" else "text.bin"))


def _rows() -> list[dict[str, Any]]:
    return [{"text": text, "kind": WORDS[n % 3], "number": n * 1.5} for n, text in enumerate(TEXTS)]


def _lines() -> str:
    return "".join(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(_rows()))


def _table(separator: str, quote: str) -> str:
    cells = [["text", "kind", "number"], *(map(str, row.values()) for row in _rows())]
    return "".join(separator.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in cells)


def _write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(_rows()), path, row_group_size=16, write_page_checksum=True, compression="zstd"
    )


def _images() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (12, 6, 6), np.uint8), np.arange(12, dtype=np.uint8) % 3


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write_idx(path: Path) -> None:
    images, labels = map(_idx, _images())
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    for file, content in ((path, images), (beside, labels)):
        file.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_npz(path: Path) -> None:
    images, labels = _images()
    np.savez_compressed(path, images=images, labels=labels)


def _tokens() -> np.ndarray:
    documents = [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in TEXTS]
    return np.concatenate([part for document in documents for part in ([256], document)])


def _write_megatron(path: Path) -> None:
    tokens = _tokens().astype("<u2")
    starts = np.flatnonzero(tokens == 256)
    sizes = np.diff(starts, append=len(tokens))
    count = len(starts)
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, count, count + 1)
    columns = (
        sizes.astype("<i4").tobytes()
        + (starts * 2).astype("<i8").tobytes()
        + np.arange(count + 1).astype("<i8").tobytes()
    )
    path.write_bytes(tokens.tobytes())
    path.with_suffix(".idx").write_bytes(header + columns)


def _write_llm_c(path: Path) -> None:
    tokens = _tokens().astype("<u2")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())


_WRITERS: dict[str, Callable[[Path], Any]] = {
    "txt": lambda path: path.write_text("\n".join(TEXTS), "utf-8"),
    "txt.zst": lambda path: path.write_bytes(zstandard.compress("\n".join(TEXTS).encode())),
    "jsonl": lambda path: path.write_text(_lines(), "utf-8"),
    "jsonl.gz": lambda path: path.write_bytes(gzip.compress(_lines().encode())),
    "json": lambda path: path.write_text(json.dumps(_rows()), "utf-8"),
    "csv": lambda path: path.write_text(_table(",", '"'), "utf-8"),
    "tsv": lambda path: path.write_text(_table("\t", ""), "utf-8"),
    "parquet": _write_parquet,
    "idx": _write_idx,
    "idx.gz": _write_idx,
    "npz": _write_npz,
    "megatron": _write_megatron,
    "llm.c": _write_llm_c,
}


def _write_pictures(place: Path) -> None:
    """A picture of each format in each of two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for name in ("cat", "dog"):
        (place / name).mkdir()
        for suffix in ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm"):
            Image.fromarray(pixels).save(place / name / f"1.{suffix}")
