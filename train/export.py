"""Models out to Hugging Face folders and in again, each way proven before it says done.

An export reopens what it wrote by the same strict reader as an import, and computes again. An import maps back what it
read, and finds the same bits. The folders are local: safetensors are mapped into memory.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors.numpy import save_file

from data.progress import Progress
from data.tokenizers.base import TOKENIZER_FILE
from data.tokenizers.export import to_files
from data.tokenizers.load import FOREIGN_FILES, load_tokenizer
from model.cost import count_parameters
from model.encoder_decoder import EncoderDecoderConfig
from model.families.weights import Layout
from model.parameters import Declaration, Skeleton, merge
from model.presets import Family, constants_of, family_of, family_of_architecture, renamed_in
from model.structures import STRUCTURES, ModelConfig
from model.vision import VisionConfig
from train.hugging_face import DTYPES, INDEX_FILE, WEIGHTS_FILE, HuggingFaceFolder
from train.pixels import PREPROCESSOR_FILE, check_preprocessor, to_preprocessor
from train.run_directory import local_folder
from train.state import blueprint

RECEIPT_FILE = "jumok_receipt.json"
GENERATION_FILE = "generation_config.json"
EXPORT_DTYPES = tuple(dtype.name for dtype in DTYPES.values())
TOLERANCE = 1e-5  # of the largest logit, or of 1
_CONSTANT_TOLERANCE = 1e-6  # of what no weight is, where it is not zero: sines are rounded in more than one way
_SHOWN = 4096  # the most numbers of an input that a receipt shows

# What belongs to the text side of a folder: carried through an import and a later export byte for byte.
_CARRIED_FILES = (TOKENIZER_FILE, *FOREIGN_FILES, GENERATION_FILE)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def export_folder(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer_folder: epath.PathLike | None,
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a model as a folder that transformers loads, read it again, and compare what both compute.

    Args:
        params: the weights by name, numpy or JAX arrays, of which one tensor at a time is brought to the host.
        config: what they are the weights of.
        tokenizer_folder: the run's tokenizer files; None, or a folder without any, for none.
        folder: a local one, which must be empty or not exist; it appears complete or not at all.
        dtype: float32, float16 or bfloat16; as stored by default.
        shard_bytes: the most that one file of weights holds.
        progress: called with the bytes of weights written and in all.

    Returns:
        The receipt: path, architecture, parameters, dtype, max_logit_difference, what was compared, and a SHA-256 of
        every file. All but the path is in the folder too.

    Raises:
        ValueError: a folder that is not local or not empty, a model that no architecture expresses, a dtype that cannot
            hold it.
        RuntimeError: what was written computes other logits; nothing is left.
    """
    target = local_folder(folder).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{folder} already exists and is not an empty folder; name another, or empty it first")
    family = family_of(config)
    plan = blueprint(config)
    layout = _layout(family, config, plan.declared)
    constants = constants_of(family, config)
    stored_as = _export_dtype(params, dtype)
    files, token_ids = _text_side(tokenizer_folder, config)
    if isinstance(config, VisionConfig):
        files[PREPROCESSOR_FILE] = _encoded(to_preprocessor(config))

    with _appearing(target) as draft:
        values = {
            "architectures": [family.architecture(config)],
            "model_type": family.MODEL_TYPE,
            **token_ids,
            **family.to_hugging_face_config(config),  # where it names a token, that is part of the model
            "torch_dtype": stored_as.name,  # the name that every version of transformers reads
        }
        for name, content in (files | {"config.json": _encoded(values)}).items():
            (draft / name).write_bytes(content)
        shapes = dict(layout.shapes()) | {name: array.shape for name, array in constants.items()}
        tensors = chain(layout.to_hugging_face(params), constants.items())
        _write_weights(draft, shapes, tensors, stored_as, shard_bytes, progress)
        receipt = {
            "architecture": family.architecture(config),
            "parameters": count_parameters(config),
            "dtype": stored_as.name,
            **_compare(draft, layout, plan.skeleton, params, stored_as),
            "sha256": {file.name: _sha256(file) for file in sorted(draft.iterdir())},
        }
        (draft / RECEIPT_FILE).write_bytes(_encoded(receipt))
    return {"path": str(target), **receipt}


def import_folder(
    folder: str | os.PathLike[str], progress: Progress | None = None
) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, bytes]]:
    """Read a model in Hugging Face's layout, and prove the reading by mapping it back: every tensor has the same bits.

    Args:
        folder: a local folder, of which nothing is ever run.
        progress: called with the bytes of weights read and in all.

    Returns:
        The configuration; the weights by name, in the files' dtype; and the files of the tokenizer and of generation
        by name, as they are, to be kept beside the model.

    Raises:
        ValueError: anything that is not understood, and weights that are not finite, in one sentence with the folder
            and the file.
    """
    source = local_folder(folder)
    try:
        return _import(HuggingFaceFolder(source), progress)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _import(source: HuggingFaceFolder, progress: Progress | None):
    values = source.json("config.json")
    family = family_of_architecture(values)
    if values.get("model_type", family.MODEL_TYPE) != family.MODEL_TYPE:
        raise ValueError(f"config.json: model_type={values['model_type']} is not {values['architectures'][0]}'s")
    config = family.from_hugging_face_config(values)
    if isinstance(config, VisionConfig) and source.has(PREPROCESSOR_FILE):
        check_preprocessor(source.json(PREPROCESSOR_FILE), config.channels)
    carried = _carried(source, values)
    layout = _layout(family, config, blueprint(config).declared)
    stored_names = _matched(source, family, config, layout)

    total = sum(math.prod(source.tensors[name].shape) for name in stored_names.values())
    done = 0

    def read(name: str) -> np.ndarray:
        nonlocal done
        array = source.read(stored_names[name])
        if not np.isfinite(array).all():
            raise ValueError(f"the tensor {stored_names[name]} holds values that are not finite; it is damaged")
        done += array.size
        if progress:
            progress(done, total)
        return array

    stored_dtypes = {source.tensors[name].dtype for name in stored_names.values()}
    params = layout.from_hugging_face(read, jnp.result_type(*(DTYPES[dtype] for dtype in stored_dtypes)))
    for name, array in layout.to_hugging_face(params):
        stored = source.read(stored_names[name])
        if array.astype(stored.dtype).tobytes() != stored.tobytes():
            raise RuntimeError(f"{stored_names[name]} was not read as it is stored: a defect of this program")
    return config, params, carried


def _layout(family: Family, config: ModelConfig, declared: Mapping[str, Declaration]) -> Layout:
    return Layout(family.weights(config), declared, getattr(config, "vocab_size", 0))  # images have no vocabulary


def _matched(source: HuggingFaceFolder, family: Family, config: ModelConfig, layout: Layout) -> dict[str, str]:
    """The stored name of each tensor of the architecture, once all are seen to be there as they must, and no more."""
    full_names = _full_names(source, family)
    stored_names = {}
    missing, misshapen = [], []
    for name, shape in layout.shapes():
        if name not in full_names:
            missing.append(name)
            if len(missing) > 3:  # the sizes in config.json may be anything
                break
        elif source.tensors[full_names[name]].shape != shape:
            misshapen.append(f"{name} is {list(source.tensors[full_names[name]].shape)} instead of {list(shape)}")
        elif source.tensors[full_names[name]].dtype not in DTYPES:
            raise ValueError(f"{name} is of type {source.tensors[full_names[name]].dtype}, not of {', '.join(DTYPES)}")
        else:
            stored_names[name] = full_names[name]
    if missing:
        raise ValueError(f"the weights of {_some(missing)} are missing, which config.json makes part of the model")
    if misshapen:
        raise ValueError(f"config.json and the weights disagree: {_some(misshapen)}")
    others = {name for name in full_names if name not in stored_names and not re.fullmatch(family.IGNORED, name)}
    for copy in others & family.COPIES.keys():
        original = family.COPIES[copy]
        while original not in stored_names and original in family.COPIES:
            original = family.COPIES[original]
        if original not in stored_names:
            continue  # nothing of this model is copied
        others.remove(copy)
        if source.read(full_names[copy]).tobytes() != source.read(stored_names[original]).tobytes():
            raise ValueError(
                f"config.json ties {copy} to {original}, and yet they differ; tie_word_embeddings is wrong"
            )
    constants = constants_of(family, config) if others else {}  # made last, when the sizes are known to be real
    for name in others & constants.keys():
        others.remove(name)
        if not _is_constant(source.read(full_names[name]), constants[name]):
            raise ValueError(
                f"{name} is no weight of this model, and yet it holds other numbers than it must by config.json; the "
                "file is damaged, or config.json is another model's"
            )
    if others:
        raise ValueError(
            f"the tensors {_some(sorted(others))} are no part of {family.architecture(config)} as config.json has it"
        )
    return stored_names


def _full_names(source: HuggingFaceFolder, family: Family) -> dict[str, str]:
    """The stored name of each tensor by its name of today in a whole model; a bare one's files lack the prefix."""
    bare = not any(name.startswith(family.PREFIX) for name in source.tensors)
    found = {}
    for stored in source.tensors:
        name = family.PREFIX + stored if bare and stored not in family.COPIES else stored
        for old, new in renamed_in(family).items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        found[name] = stored
    return found


def _is_constant(stored: np.ndarray, constant: np.ndarray) -> bool:
    """Whether a tensor is what it must be: zero exactly, and anything else up to how its type rounds."""
    if stored.shape != constant.shape or stored.dtype not in DTYPES.values():
        return False
    close = np.maximum(_CONSTANT_TOLERANCE, float(jnp.finfo(stored.dtype).eps) * np.abs(constant))
    difference = np.abs(stored.astype(np.float32) - constant)
    return bool((difference <= np.where(constant == 0, 0, close)).all())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")


def _carried(source: HuggingFaceFolder, values: dict[str, Any]) -> dict[str, bytes]:
    files = {name: source.content(name) for name in _CARRIED_FILES if source.has(name)}
    for name in files:
        if name.endswith(".json") and "auto_map" in source.json(name):
            raise ValueError(f"{name}: auto_map asks for code from the folder, and none is ever run; remove the key")
    # Old folders name their start and end tokens in config.json alone.
    ids = {key: values[key] for key in _TOKEN_IDS if values.get(key) is not None}
    return files if GENERATION_FILE in files or not ids else {**files, GENERATION_FILE: _encoded(ids)}


def _text_side(tokenizer_folder: epath.PathLike | None, config: ModelConfig) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The tokenizer's and generation's files, and the ids of special tokens (None where they are unknown).

    There is nothing of it for a model that reads images.
    """
    if not hasattr(config, "vocab_size"):
        return {}, {}
    files: dict[str, bytes] = {}
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    kept = epath.Path(tokenizer_folder) if tokenizer_folder is not None else None
    if kept is not None and any((kept / name).exists() for name in (TOKENIZER_FILE, *FOREIGN_FILES)):
        tokenizer = load_tokenizer(kept)
        files = to_files(tokenizer)
        if not tokenizer.files:  # made here: with its description, an import can run it again
            files[TOKENIZER_FILE] = (kept / TOKENIZER_FILE).read_bytes()
        if tokenizer.start_id >= 0:
            ids["bos_token_id"] = tokenizer.start_id
        if tokenizer.end_id >= 0:
            ids["eos_token_id"] = tokenizer.end_id
        ids["pad_token_id"] = tokenizer.specials.get("pad")
    if isinstance(config, EncoderDecoderConfig):
        start_id = ids["bos_token_id"] if config.decoder_start_id is None else config.decoder_start_id
        ids |= {} if start_id is None else {"decoder_start_token_id": start_id}
    if kept is not None and (kept / GENERATION_FILE).exists():
        files[GENERATION_FILE] = (kept / GENERATION_FILE).read_bytes()
        generation = json.loads(files[GENERATION_FILE])
        ids |= {key: generation[key] for key in _TOKEN_IDS if key in generation}
    return {GENERATION_FILE: _encoded(ids), **files}, ids


def _export_dtype(params: Mapping[str, Any], asked: str | None) -> np.dtype:
    if asked is None:
        return np.dtype(jnp.result_type(*{array.dtype for array in params.values()}))
    if asked not in EXPORT_DTYPES:
        raise ValueError(f"dtype={asked} must be one of {', '.join(EXPORT_DTYPES)}")
    return np.dtype(jnp.dtype(asked))


def _rounded(array: Any, dtype: np.dtype) -> Any:
    with np.errstate(over="ignore"):  # the caller finds what overflows
        return array.astype(dtype)


def _write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: np.dtype,
    limit: int,
    progress: Progress | None,
) -> None:
    """Write tensors, which come in the order of `shapes`, into files of at most `limit` bytes."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    files = _files(sizes, limit)
    counts = Counter(files.values())
    total = sum(sizes.values())
    done = 0
    shard: dict[str, np.ndarray] = {}
    for name, array in tensors:
        shard[name] = _rounded(array, dtype)
        if not np.isfinite(shard[name]).all():
            remedy = "export another checkpoint" if not np.isfinite(array).all() else "export as bfloat16 or float32"
            raise ValueError(f"{name} holds values that are not finite as {dtype.name}; {remedy}")
        done += sizes[name]
        if progress:
            progress(done, total)
        if len(shard) == counts[files[name]]:
            save_file(shard, folder / files[name], metadata={"format": "pt"})  # without it, transformers refuses
            shard = {}
    if len(counts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX_FILE).write_bytes(_encoded(index))


def _files(sizes: Mapping[str, int], limit: int) -> dict[str, str]:
    """The file of each tensor: one, or several of at most `limit` bytes (a larger tensor has one for itself)."""
    shard_of, used = {}, [0]
    for name, size in sizes.items():
        if used[-1] and used[-1] + size > limit:
            used.append(0)
        used[-1] += size
        shard_of[name] = len(used)
    if len(used) == 1:
        return dict.fromkeys(sizes, WEIGHTS_FILE)
    stem, suffix = WEIGHTS_FILE.split(".")
    return {name: f"{stem}-{shard:05}-of-{len(used):05}.{suffix}" for name, shard in shard_of.items()}


def _compare(
    folder: Path, layout: Layout, skeleton: Skeleton, params: Mapping[str, Any], dtype: np.dtype
) -> dict[str, Any]:
    """What a folder that was just written computes, against the weights that it was written from; both in float32."""
    config, reread, _ = import_folder(folder)
    for (name, array), (_, again) in zip(layout.to_hugging_face(params), layout.to_hugging_face(reread), strict=True):
        if not np.array_equal(_rounded(array, dtype), again):
            raise RuntimeError(f"the tensor {name} was not written as it is; nothing was exported")
    inputs = STRUCTURES[type(config)].example(config)
    placed = {
        n: jax.device_put(a, params[n].sharding) if isinstance(params[n], jax.Array) else a for n, a in reread.items()
    }
    rounded = {n: _rounded(a, dtype) for n, a in params.items()}
    expected = _outputs(skeleton, rounded, inputs, layout.vocab_size)
    computed = _outputs(blueprint(config).skeleton, placed, inputs, layout.vocab_size)
    largest = max(float(np.abs(output).max()) for output in expected.values())
    difference = max(float(np.abs(expected[name] - computed[name]).max()) for name in expected)
    allowed = TOLERANCE * max(1.0, largest)
    if not difference <= allowed:
        raise RuntimeError(
            f"the folder's logits differ from the run's by {difference:.3g}, where {allowed:.3g} is allowed; "
            "nothing was exported"
        )
    shown = {name: _shown(array) for name, array in inputs.items()}
    return {"max_logit_difference": difference, "max_logit": largest, "tolerance": TOLERANCE, "inputs": shown}


def _shown(array: np.ndarray) -> Any:
    """An input as a receipt has it: its numbers or, of a large one, by what it is known."""
    if array.size <= _SHOWN:
        return array.tolist()
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": digest}


def _outputs(
    skeleton: Skeleton, params: Mapping[str, Any], inputs: Mapping[str, np.ndarray], vocab_size: int
) -> dict[str, np.ndarray]:
    """What a model says of some inputs, by name, without the padding of the vocabulary."""

    def compute(params: Mapping[str, Any]) -> dict[str, jax.Array]:
        said = merge(skeleton, {name: a.astype(jnp.float32) for name, a in params.items()})(**inputs)
        said = said if isinstance(said, dict) else {"logits": said}
        return said | ({"logits": said["logits"][..., :vocab_size]} if "logits" in said else {})

    with jax.default_matmul_precision("highest"):
        return {name: np.asarray(output) for name, output in jax.jit(compute)(params).items()}


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it at the end, or is removed when something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    draft.mkdir()
    try:
        yield draft
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft)
        raise


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"
