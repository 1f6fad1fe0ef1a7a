"""Checkpoints: asynchronous, atomic, sharded by Orbax; verified by digests of our own.

Orbax restores a flipped bit silently, casts a changed dtype silently, and reports a failed save only to those who wait
for it. So every checkpoint carries a manifest in the same atomic commit: a digest of every array, computed on the
devices before saving and again after restoring, beside its dtype and shape and the caller's record (configuration,
position in the data, evaluation). The digests find corruption, not an adversary.

    RUN/checkpoints/STEP/ITEM/               the arrays of one item ("params", ...), as a flat dict of dotted names
    RUN/checkpoints/STEP/manifest/metadata   {format, step, record, arrays: {ITEM/NAME: {digest, dtype, shape}}, sha256}

A step's folder is there whole or not at all, so its name alone says that it was committed.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from train.cluster import where
from train.digest import array_digest, hexadecimal
from train.run_directory import StorageError, first_line, is_local, is_step, json_text
from train.state import flatten

FORMAT = 1

# Copies of an array that devices hold write a part of it each, but not of small ones: that is a program for each part,
# and training waits while it is compiled.
_ARRAYS = create_type_handler_registry((jax.Array, ArrayHandler(min_slice_bytes_for_replica_parallel=2**24)))

Items = dict[str, Any]  # item -> pytree of arrays, or of jax.ShapeDtypeStruct that say what to restore

_MANIFEST = "manifest"
_COMMITTED = "commit_success.txt"  # Orbax commits by this file where it cannot rename a folder atomically
_DELETING = ".deleting"


def _operational(default: int) -> int:
    return field(default=default, metadata={"operational": True})


@dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written, in steps, and which are kept.

    Kept are the last `keep_last`, the best `keep_best` by evaluation, and each whose step is a multiple of
    `keep_every` (0: none). The run goes on while no more than `failures` saves in a row fail, but for its last one.
    """

    every: int = _operational(1000)
    keep_last: int = _operational(3)
    keep_best: int = _operational(1)
    keep_every: int = _operational(0)
    failures: int = _operational(0)

    def validate(self) -> None:
        """Raises ValueError for numbers that mean nothing."""
        for name, least in {"every": 1, "keep_last": 1, "keep_best": 0, "keep_every": 0, "failures": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"checkpoint.{name} must be at least {least}, got {getattr(self, name)}")


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be used, and why."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"checkpoint {step} cannot be used: {reason}")
        self.step = step
        self.reason = reason


class Checkpoints:
    """The checkpoints in one folder. Close it, or use it as a context: a save that still runs is waited for.

    Of many processes all call the same methods in the same order; the first alone writes the manifest and deletes.

    Args:
        folder: RUN/checkpoints, local or of an object store; made by the first save.
        config: which checkpoints are kept, and how many saves may fail.
        writer: whether to save here, as the only one that does. The leftovers of killed saves and of interrupted
            deletions are then removed.
        report: gets a sentence for each checkpoint that is skipped, and for each failed save that is tolerated.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        config: CheckpointConfig | None = None,
        *,
        writer: bool = False,
        report: Callable[[str], None] = lambda sentence: None,
    ):
        folder = epath.Path(folder)
        self._folder = epath.Path(os.path.abspath(folder)) if is_local(folder) else folder  # as Orbax demands
        self._config = config or CheckpointConfig()
        self._config.validate()
        self._report = report
        self._writer = writer
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: concurrent.futures.Future[None] | None = None
        self._failures = 0  # of saves, in a row
        self._intact: set[int] = set()  # seen whole by this object: saved, or restored in full
        self._damaged: set[int] = set()
        for logger in ("absl", "asyncio"):
            logging.getLogger(logger).addFilter(_is_news)
        if writer and jax.process_index() == 0:
            self._remove_leftovers()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.close()
        except StorageError as error:
            if kind is None:
                raise
            self._report(str(error))  # beside what ends the run, which is raised

    def steps(self) -> list[int]:
        """The committed steps, ascending; whether they verify is for `restore` to find."""
        return sorted(int(path.name) for path in self._listing() if is_step(path.name) and self._is_committed(path))

    def save(self, step: int, items: Items, record: dict[str, Any], first: Callable[[], None] = lambda: None) -> None:
        """Saves in the background; on return the arrays may be donated.

        An earlier save is waited for, as by `check`; that this one fails is for the next `check`, `save` or `wait` to
        say. A step that was seen whole is left as it is; a damaged one is replaced.

        Args:
            step: completed updates; the folder's name.
            items: pytrees of arrays by name; each can be restored without the others.
            record: plain values; "evaluation", in nats per token, decides which checkpoint is best.
            first: makes durable what has to be so before this commits; where it raises OSError, the save has failed.
        """
        if not self._writer:
            raise RuntimeError("these checkpoints were opened for reading")
        self._settle()
        if step in self._intact:
            return
        trees = {item: flatten(tree) for item, tree in items.items()}
        digests = _digests(trees)
        arrays = {
            f"{item}/{name}": {"digest": hexadecimal(digests[item][name]), **_description(array)}
            for item, tree in trees.items()
            for name, array in tree.items()
        }
        # Through JSON and back, so that the digest is of what a reader will parse.
        manifest = json.loads(json_text({"format": FORMAT, "step": step, "record": record, "arrays": arrays}))
        manifest["sha256"] = _sha256(manifest)
        saved = {item: ocp.args.PyTreeSave(tree) for item, tree in trees.items()}
        handlers: dict[str, Any] = {item: ocp.PyTreeCheckpointHandler(type_handler_registry=_ARRAYS) for item in trees}
        handlers[_MANIFEST] = ocp.JsonCheckpointHandler()
        # One for each save: after a failure Orbax would raise what is left of it at the next. Folders are made at once:
        # made in the background, where they cannot be, five minutes of other threads' waiting for them keep the process
        # from ending.
        orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**handlers),
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            self._prepare(first, _written_bytes(trees))
            orbax.save(
                self._path(step), ocp.args.Composite(**saved, **{_MANIFEST: ocp.args.JsonSave(manifest)}), force=True
            )
        except (OSError, ValueError) as error:
            self._saving = concurrent.futures.Future()
            self._saving.set_exception(self._failed(step, error))
        else:
            self._saving = self._thread.submit(self._finish, step, orbax)

    def check(self) -> None:
        """Raises the error of a save that has failed in the background, or reports it, where it is tolerated.

        Cheap: for every step.
        """
        if self._saving is not None and self._saving.done():
            self._settle()

    def wait(self) -> None:
        """Waits until the save that runs is committed, and older ones are deleted; raises its error, StorageError."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
            self._failures = 0

    def close(self) -> None:
        """Waits, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def record(self, step: int) -> dict[str, Any]:
        """The record saved with a step, without reading its arrays; raises DamagedCheckpoint."""
        return self._manifest(step)["record"]

    def digest(self, step: int, item: str) -> str:
        """A SHA-256, in hexadecimal, of the digests of an item's arrays as they were saved."""
        arrays = self._manifest(step)["arrays"]
        return _sha256({name: array for name, array in arrays.items() if name.startswith(f"{item}/")})

    def best(self) -> int | None:
        """The committed step of the lowest evaluation (of equals the earliest), or None where none was evaluated."""
        evaluations = self._evaluations(self.steps())
        return next(iter(_ranked(evaluations)), None)

    def restore(self, step: int, abstract: Items) -> Items:
        """Reads items of a step onto devices and verifies them.

        Args:
            step: a committed step.
            abstract: for each wanted item its pytree with jax.ShapeDtypeStruct leaves, whose shardings may be of any
                mesh. Items not named are not read.

        Raises:
            DamagedCheckpoint: an array is missing, unknown, of another shape or dtype, unreadable, or not what was
                saved.
            ValueError: there is no such step, or a newer program wrote it.
        """
        manifest = self._manifest(step)
        wanted = {item: flatten(tree) for item, tree in abstract.items()}
        for item, tree in wanted.items():
            _compare(step, item, tree, manifest["arrays"])
        trees = self._read(step, wanted)
        digests = _digests(trees)
        for item, tree in digests.items():
            for name, digest in tree.items():
                if hexadecimal(digest) != manifest["arrays"][f"{item}/{name}"]["digest"]:
                    raise DamagedCheckpoint(step, f"{item}/{name} holds other values than were saved")
        if set(wanted) == {name.split("/")[0] for name in manifest["arrays"]}:
            self._intact.add(step)
        return {
            item: jax.tree.unflatten(jax.tree.structure(abstract[item]), [trees[item][name] for name in tree])
            for item, tree in wanted.items()
        }

    def newest(self, abstract: Items, multiple_of: int = 1) -> tuple[int, Items, dict[str, Any]] | None:
        """The newest step that verifies, its items and its record; None where nothing was saved.

        Args:
            abstract: as for `restore`.
            multiple_of: steps that are multiples of this come before all others.

        Raises:
            ValueError: there are checkpoints, and none verifies.
        """
        reasons = []
        for step in sorted(self.steps(), key=lambda step: (step % multiple_of == 0, step), reverse=True):
            try:
                return step, self.restore(step, abstract), self.record(step)
            except DamagedCheckpoint as damage:
                self._damaged.add(step)
                reasons.append(f"{step}: {damage.reason}")
                self._report(f"skipped {damage}")
        if reasons:
            raise ValueError(f"no checkpoint in {self._folder} can be used ({'; '.join(reasons)})")
        return None

    def give_up_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, which the run leaves behind; the first of many processes does."""
        if jax.process_index() == 0:
            for later in (other for other in self.steps() if other > step):
                self._delete(self._path(later))

    def _path(self, step: int) -> epath.Path:
        return self._folder / str(step)

    def _listing(self) -> list[epath.Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _is_committed(self, path: epath.Path) -> bool:
        return path.is_dir() and (is_local(path) or (path / _COMMITTED).exists())

    def _manifest(self, step: int) -> dict[str, Any]:
        """Reads and verifies a step's manifest."""
        if not self._is_committed(self._path(step)):
            raise ValueError(f"there is no checkpoint {step} in {self._folder}; it has {self.steps() or 'none'}")
        try:
            manifest = json.loads((self._path(step) / _MANIFEST / "metadata").read_text())
            written_format, sha256 = manifest["format"], manifest.pop("sha256")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCheckpoint(step, "it has no readable manifest") from error
        if isinstance(written_format, int) and written_format > FORMAT:
            raise ValueError(
                f"checkpoint {step} was written by a newer jumok"
                f" (format {written_format}, this program reads up to {FORMAT}); update jumok"
            )
        if sha256 != _sha256(manifest):
            raise DamagedCheckpoint(step, "its manifest is not what was saved")
        match manifest:  # the digest is no signature: whoever changes a manifest on purpose makes it fit
            case {"step": int(written), "record": dict(), "arrays": dict(arrays)} if _are_descriptions(arrays):
                if written != step:
                    raise DamagedCheckpoint(step, f"its manifest is that of step {written}")
                return manifest
        raise DamagedCheckpoint(step, "its manifest does not describe a checkpoint")

    def _read(self, step: int, wanted: dict[str, dict[str, Any]]) -> dict[str, dict[str, jax.Array]]:
        arrays: dict[str, dict[str, jax.Array]] = {item: {} for item in wanted}
        damage = None
        names = [(item, name) for item, tree in wanted.items() for name in tree]
        for item, name in names:
            try:
                arrays[item][name] = _read_array(self._path(step) / item, name, wanted[item][name])
            except (ValueError, LookupError, OSError, NotImplementedError) as error:
                damage = DamagedCheckpoint(step, f"{item}/{name} cannot be read ({_reason(error)})")
                break
        # A process reads its own shards only: unless all know of the damage, the others wait for this one forever.
        if (process := where(damage is not None)) is not None:
            raise damage or DamagedCheckpoint(step, f"process {process} cannot read its part")
        return arrays

    def _evaluations(self, steps: list[int]) -> dict[int, float | None]:
        """The evaluation of each of these steps whose manifest can be read."""
        evaluations = {}
        for step in steps:
            try:
                evaluations[step] = self.record(step).get("evaluation")
            except ValueError:
                continue
        return evaluations

    def _prepare(self, first: Callable[[], None], size: int) -> None:
        """What comes before a save of so many bytes. It fails in all processes where it fails in one.

        Room is looked for, though a save that finds none fails too: Orbax then leaves hundreds of tracebacks.
        """
        failure = None
        try:
            if self._failures and jax.process_index() == 0:
                self._remove_leftovers()  # of threads that still wrote when the save had failed
            first()
            self._folder.mkdir(parents=True, exist_ok=True)
            if is_local(self._folder) and (free := shutil.disk_usage(self._folder).free) < size:
                raise OSError(f"{os.strerror(errno.ENOSPC)}: it takes {size:,} bytes, and {free:,} are free")
        except OSError as error:
            failure = error
        if (process := where(failure is not None)) is not None:
            raise failure or StorageError(f"process {process} cannot write")

    def _finish(self, step: int, orbax: ocp.AsyncCheckpointer) -> None:
        """In the background: waits for the commit, reads the manifest back, and then deletes what is not kept."""
        try:
            orbax.close()  # waits until it has committed
            if jax.process_index() == 0:
                self._manifest(step)
        except Exception as error:
            raise self._failed(step, error) from error
        self._intact.add(step)
        self._damaged.discard(step)
        if jax.process_index() != 0:
            return
        # What cannot be read or is known to be damaged is neither counted nor deleted: it is someone's to look at.
        evaluations = self._evaluations([old for old in self.steps() if old <= step and old not in self._damaged])
        try:
            for old in evaluations.keys() - _kept(evaluations, self._config):
                self._delete(self._path(old))
        except OSError as error:
            raise StorageError(
                f"checkpoint {step} is saved, and older ones cannot be deleted: {first_line(error)}"
            ) from error

    def _failed(self, step: int, error: Exception) -> StorageError:
        """What to say of a failed save, whose leftovers take space that the run may need."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # then the next start removes them
                self._remove_leftovers()
        return StorageError(f"checkpoint {step} cannot be saved: {_reason(error)}")

    def _settle(self) -> None:
        """Waits for the save that runs, and counts it; raises its error unless it is tolerated."""
        try:
            self.wait()
        except StorageError as error:
            self._failures += 1
            if self._failures > self._config.failures:
                raise
            self._report(
                f"{error}; the run goes on (failure {self._failures} in a row, and checkpoint.failures allows "
                f"{self._config.failures})"
            )

    def _delete(self, path: epath.Path) -> None:
        """Deletes a checkpoint, which first stops being one: an interruption leaves no half of it under its name."""
        if is_local(path):
            path = path.rename(path.with_name(path.name + _DELETING))
        else:
            (path / _COMMITTED).unlink(missing_ok=True)
        path.rmtree()

    def _remove_leftovers(self) -> None:
        for path in self._listing():
            unfinished = ocp.path.atomicity_types.TMP_DIR_SUFFIX in path.name or path.name.endswith(_DELETING)
            if unfinished or (is_step(path.name) and path.is_dir() and not self._is_committed(path)):
                path.rmtree()


def _read_array(folder: epath.Path, name: str, abstract: Any) -> jax.Array:
    """Reads the shards of an array that this process needs, all at once.

    TensorStore, which Orbax writes with, is asked directly: at a damaged shard Orbax abandons its other reads, and each
    of them prints a traceback.
    """
    base = {"driver": "file", "path": f"{folder}/"} if is_local(folder) else f"{folder}/"
    spec = {"driver": "auto", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
    store = tensorstore.open(spec, read=True).result()
    if (store.shape, store.dtype.numpy_dtype) != (abstract.shape, abstract.dtype):
        raise ValueError(f"it is stored as {store.dtype.name} {list(store.shape)}")
    indices = abstract.sharding.addressable_devices_indices_map(abstract.shape).values()
    reads = {str(index): store[index].read() for index in indices}  # replicas share a read
    return jax.make_array_from_callback(abstract.shape, abstract.sharding, lambda index: reads[str(index)].result())


def _is_news(entry: logging.LogRecord) -> bool:
    """Drops the tracebacks that Orbax's threads log of a failed save, a thousand lines: it is raised to us too."""
    return entry.levelno < logging.ERROR or f"{os.sep}orbax{os.sep}" not in entry.pathname + entry.getMessage()


def _reason(error: BaseException) -> str:
    """What an error says: the system's own words, which TensorStore buries under names of its files, where it says."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error).split(" [tensorstore_spec=")[0]


def _written_bytes(trees: Items) -> int:
    """What this process writes of the arrays, before it is compressed."""
    shards = [shard for tree in trees.values() for array in tree.values() for shard in array.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)


def _ranked(evaluations: dict[int, float | None]) -> list[int]:
    """The evaluated steps, best first."""
    scores = [(score, step) for step, score in evaluations.items() if isinstance(score, int | float)]
    return [step for _, step in sorted(scores)]


def _kept(evaluations: dict[int, float | None], config: CheckpointConfig) -> set[int]:
    """Which of the steps the configuration keeps."""
    kept = {*sorted(evaluations)[-config.keep_last :], *_ranked(evaluations)[: config.keep_best]}
    return kept | {step for step in evaluations if config.keep_every and step % config.keep_every == 0}


def _compare(step: int, item: str, wanted: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Raises DamagedCheckpoint at the first array of an item that is not as wanted."""
    stored = {name.removeprefix(f"{item}/"): array for name, array in arrays.items() if name.startswith(f"{item}/")}
    if missing := wanted.keys() - stored.keys():
        raise DamagedCheckpoint(step, f"it has no {item}/{min(missing)}")
    if unknown := stored.keys() - wanted.keys():
        raise DamagedCheckpoint(step, f"it holds {item}/{min(unknown)}, which this run does not have")
    for name, array in wanted.items():
        for what, needed in _description(array).items():
            if (held := stored[name][what]) != needed:
                raise DamagedCheckpoint(step, f"{item}/{name} has {what} {held}, and this run needs {needed}")


def _description(array: Any) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def _are_descriptions(arrays: dict[str, Any]) -> bool:
    """Whether a manifest's arrays each have a digest beside what `_description` gives."""
    return all(
        isinstance(array, dict) and array.keys() == {"digest", "dtype", "shape"} and isinstance(array["digest"], str)
        for array in arrays.values()
    )


def _sha256(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digests(trees: dict[str, dict[str, jax.Array]]) -> dict[str, dict[str, Any]]:
    """The digests of all arrays, on the host.

    One array after the other: where several programs run at once on simulated CPU devices, XLA's collectives may wait
    for each other for ever.
    """
    return jax.tree.map(lambda array: jax.device_get(array_digest(array)), trees)
