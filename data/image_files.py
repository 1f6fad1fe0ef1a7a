"""Images and their classes, as files hold them.

| path | images | classes |
|---|---|---|
| an IDX file, as MNIST's are | bytes [n, height, width] or [n, height, width, channels] | an IDX file beside it |
| an .npz of numpy | the same, named images, x, x_train or train_images | labels, y, y_train or train_labels |
| a folder | CLASS/**/*.png, .jpg, ...: whatever Pillow decodes | the names of the folders right below it |

IDX files may be compressed (.gz, .zst). Arrays are memory-mapped, after a copy into the cache where they can't be as
they lie; pictures are decoded when they are asked for.
"""

import errno
import importlib
import lzma
import math
import os
import shutil
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath

from data.cache import cache_folder, cache_path, digest_of, written_atomically
from data.classes import no_class, order_classes
from data.files import CHUNK_BYTES, content_name, file_digest, found, is_bomb, is_compressed, opened, stored_bytes
from data.progress import Progress

_ARRAYS = (("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("train_images", "train_labels"))
_UNSIGNED_BYTES = 8  # the type of an IDX file's numbers
_MOST_CLASSES = 1 << 20  # of arrays, where every number up to the largest is a class: larger ones mean something else
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others run programs (EPS), or are no pictures
_WEBP_HEAD = 30  # bytes, in which its size stands
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # what Pillow calls pixels of so many channels
_DEEP = ("I", "F")  # its modes of more than 8 bits a channel begin with
_MOST_PIXELS = 40_000_000  # of a picture: each takes up to 4 bytes while it is decoded
_DAMAGED_ZIP = (  # what zipfile raises for a damaged archive, beside its own error: its decompressors' and worse
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # of a version or a compression that it does not know
    RuntimeError,  # of an entry that says that it is encrypted
    UnicodeDecodeError,
    OSError,
)
_THREADS = 8  # that decode
_TOLD = 256  # pictures after which progress is told


class Shape(NamedTuple):
    """What images are to be: `size` pixels high and wide, of `channels`; `resize` makes pictures of other sizes so."""

    size: int
    channels: int
    resize: bool = False


class Images(ABC):
    """Images with a class each, numbered from 0. `path` is where they are."""

    path: str

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The classes that there are, in the order in which they are numbered.

        Raises:
            ValueError: there are fewer than two.
        """

    @abstractmethod
    def labels(self, classes: tuple[str, ...]) -> np.ndarray:
        """The number of each image's class among these, int32 [n].

        Raises:
            ValueError: a class is none of them.
        """

    @abstractmethod
    def check(self, shape: Shape, progress: Progress | None = None) -> str:
        """The digest of all images and classes, if the images can be had in a shape.

        Raises:
            ValueError: they can't.
        """

    @abstractmethod
    def take(self, numbers: np.ndarray, shape: Shape) -> np.ndarray:
        """The images of these numbers (int64 [n]), uint8 [n, size, size, channels]."""


def find_images(path: str, label_path: str | None = None) -> Images:
    """The images at `path`: an IDX file, whose classes are at `label_path` or beside it, an .npz, or a folder.

    Raises:
        ValueError: there are none, or they have no classes.
    """
    path, label_path = _expanded(path), label_path and _expanded(label_path)
    is_folder, is_npz = epath.Path(path).is_dir(), content_name(path).endswith(".npz")
    if not is_folder and not is_npz:
        return _idx_images(path, label_path)
    if label_path:
        raise ValueError(f"{path} brings its own labels; leave --data.label-path out, which is for IDX files")
    return _Pictures(path) if is_folder else _npz_images(path)


def _expanded(path: str) -> str:
    return os.fspath(epath.Path(path).expanduser())


class _Arrays(Images):
    """Images in one array, and the numbers of their classes in another."""

    def __init__(self, path: str, images: np.ndarray, labels: np.ndarray, digest: str):
        self.path, self._images, self._labels, self._digest = path, images, labels.astype(np.int32), digest
        if not len(images):
            raise ValueError(f"{path} holds no images; give a file with some")
        if len(images) != len(labels):
            raise ValueError(
                f"{path} holds {len(images):,} images, and there are {len(labels):,} labels of them; give files that "
                f"belong together"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return order_classes(map(str, range(int(self._labels.max()) + 1)), self.path)

    def labels(self, classes: tuple[str, ...]) -> np.ndarray:
        if (largest := int(self._labels.max())) >= len(classes):
            raise ValueError(f"{self.path} {no_class(str(largest), classes)} (labels of arrays are numbers from 0 on)")
        return self._labels

    def check(self, shape: Shape, progress: Progress | None = None) -> str:
        _, height, width, *channels = self._images.shape
        if shape.resize:
            raise ValueError(
                f"{self.path} holds an array, and only pictures in folders are resized; leave --data.resize out"
            )
        if (height, width) != (shape.size, shape.size):
            raise ValueError(
                f"{self.path} holds images of {height} x {width} pixels, and the model reads {shape.size} x "
                f"{shape.size}; pass --model.image-size {height}, or give square images of that size"
            )
        if (present := math.prod(channels)) != shape.channels:
            raise ValueError(
                f"{self.path} holds images with channels={present}, and the model reads {shape.channels}; "
                f"pass --model.channels {present}"
            )
        return self._digest

    def take(self, numbers: np.ndarray, shape: Shape) -> np.ndarray:
        return self._images[numbers].reshape(len(numbers), shape.size, shape.size, shape.channels)


def _idx_images(path: str, label_path: str | None) -> Images:
    head = _idx_head(path)
    if len(head.shape) not in (3, 4):
        raise ValueError(
            f"{path} holds an array of {len(head.shape)} dimensions, and images have 3, or 4 with channels; name the "
            f"file of the images"
        )
    file = _local(path)
    _check_size(path, head, file.stat().st_size)
    images = np.memmap(file, np.uint8, "r", head.begins, head.shape).view(np.ndarray) if head.size else np.empty(0)
    label_path = label_path or _labels_beside(path)
    head = _idx_head(label_path)
    if len(head.shape) != 1:
        raise ValueError(
            f"{label_path} holds an array of {len(head.shape)} dimensions, and labels have one; name the file of the "
            f"labels with --data.label-path FILE"
        )
    with opened(label_path) as (content, _):
        stored = content.read()
    _check_size(label_path, head, len(stored))
    labels = np.frombuffer(stored, np.uint8, offset=head.begins)
    return _Arrays(path, images, labels, digest_of(file_digest(path), file_digest(label_path)))


class _Head(NamedTuple):
    """The shape of an IDX file's array, and the byte where it begins."""

    shape: tuple[int, ...]
    begins: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _idx_head(path: str) -> _Head:
    """The head of an IDX file: two zero bytes, the numbers' type, how many dimensions, and each as 4 bytes."""
    with opened(path) as (content, _):
        magic = content.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or not magic[3]:
            raise ValueError(
                f"{path} is no IDX file, which begins with two zero bytes; give one, as MNIST's are, an .npz, or a "
                f"folder with a folder of pictures for each class"
            )
        if magic[2] != _UNSIGNED_BYTES:
            raise ValueError(
                f"{path} holds numbers of IDX type {magic[2]}, and unsigned bytes are read, type {_UNSIGNED_BYTES}; "
                f"convert them"
            )
        dimensions = content.read(4 * magic[3])
    if len(dimensions) < 4 * magic[3]:
        raise ValueError(f"{path} ends within its head; get it anew")
    return _Head(struct.unpack(f">{magic[3]}I", dimensions), 4 + len(dimensions))


def _check_size(path: str, head: _Head, size: int) -> None:
    if size != head.begins + head.size:
        shape = " x ".join(map(str, head.shape))
        raise ValueError(
            f"{path} has {size:,} bytes, and {shape} numbers with their head take {head.begins + head.size:,}; "
            f"get it anew"
        )


def _labels_beside(path: str) -> str:
    """The file of labels that lies beside one of images, named as MNIST's are."""
    folder, slash, name = path.rpartition("/")
    other = name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    candidates = [other, other.removesuffix(".gz") if other.endswith(".gz") else f"{other}.gz"] if other != name else []
    for candidate in candidates:
        if epath.Path(beside := folder + slash + candidate).exists():
            return beside
    looked = f" (looked for {' and '.join(candidates)})" if candidates else ""
    raise ValueError(f"the labels of {path} do not lie beside it{looked}; pass --data.label-path FILE")


def _npz_images(path: str) -> Images:
    digest = file_digest(path)
    try:
        with zipfile.ZipFile(_local(path)) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            names = next((names for names in _ARRAYS if set(names) <= set(present)), None)
            if names is None:
                looked = ", ".join(" and ".join(names) for names in _ARRAYS)
                raise ValueError(
                    f"{path} holds the arrays {', '.join(present) or 'none'}, and of images and labels one of these "
                    f"pairs is read: {looked}; save them under such names with numpy.savez"
                )
            files = []
            for name in names:
                size, stored = archive.getinfo(f"{name}.npy").file_size, stored_bytes(path)
                if is_bomb(size, stored):
                    raise ValueError(
                        f"{path} has {stored:,} bytes, and {name} in it {size:,}, as of a trap; save it uncompressed, "
                        f"with numpy.savez, if it is none"
                    )
                with archive.open(f"{name}.npy") as member:
                    files.append(_copied(f"{digest}-{name}.npy", member))
    except _DAMAGED_ZIP as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # bzip2's damage, a place before 0
            raise
        raise ValueError(f"{path} is no whole .npz file ({error}); make it anew with numpy.savez") from error
    images, labels = (_mapped(path, name, file) for name, file in zip(names, files, strict=True))
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"{path} holds {names[0]} of {images.dtype} {list(images.shape)}, and images are uint8 [n, height, width] "
            f"or [n, height, width, channels]; save them so"
        )
    is_column = labels.ndim > 0 and labels.size == len(labels)
    is_number = labels.dtype.kind in "iu" and is_column
    if not is_number or labels.min(initial=0) < 0 or labels.max(initial=0) >= _MOST_CLASSES:
        raise ValueError(
            f"{path} holds {names[1]} of {labels.dtype} {list(labels.shape)}, and labels are integers [n] from 0 on, "
            f"below {_MOST_CLASSES:,}; save them so"
        )
    return _Arrays(path, images, labels.reshape(-1), digest)


def _mapped(path: str, name: str, file: Path) -> np.ndarray:
    try:
        with np.errstate(over="raise"):  # of the product of the sizes, which are multiplied as 64-bit numbers
            return np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (ValueError, OverflowError, FloatingPointError, EOFError, OSError) as error:
        raise ValueError(f"{path} holds no array of numbers as {name} ({error}); save one with numpy.savez") from error


def _local(path: str) -> Path:
    """The content of a file as a local file: itself, or a copy in the cache of one that is compressed or elsewhere."""
    if os.path.exists(path) and not is_compressed(path):
        return Path(path)
    with opened(path) as (content, _):
        return _copied(file_digest(path), content)


def _copied(name: str, content: IO[bytes]) -> Path:
    """A copy of some content in the cache under a name, made where there is none."""
    copy = cache_path("images") / name
    if not copy.exists():  # what is there is only read, and the cache may be read-only
        with written_atomically(cache_folder("images") / name) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(content, file, CHUNK_BYTES)
    return copy


class _Pictures(Images):
    """Pictures in a folder, those of each class below a folder of its name."""

    def __init__(self, path: str):
        self.path = path
        self._pillow = _pillow()
        depth = len(epath.Path(path).parts)
        self._files = [file for file in found(path) if file.lower().endswith(_SUFFIXES)]
        within = [epath.Path(file).parts[depth:] for file in self._files]
        self._names = ["/".join(parts) for parts in within]
        if alone := next((file for file, parts in zip(self._files, within, strict=True) if len(parts) < 2), None):
            raise ValueError(f"{alone} lies in no folder of its class; move it to {path}/CLASS/")
        if not self._files:
            raise ValueError(
                f"the folder {path} holds no pictures ({', '.join(_SUFFIXES)}) in folders named like their classes; "
                f"give one that does, or an IDX or .npz file"
            )
        self._classes = [parts[0] for parts in within]

    @property
    def classes(self) -> tuple[str, ...]:
        return order_classes(self._classes, self.path)

    def labels(self, classes: tuple[str, ...]) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(classes)}
        for file, name in zip(self._files, self._classes, strict=True):
            if name not in numbers:
                raise ValueError(f"{file} {no_class(name, classes)}")
        return np.array([numbers[name] for name in self._classes], np.int32)

    def check(self, shape: Shape, progress: Progress | None = None) -> str:
        """Looks at the head of every file, so that one of another size does not end a run in its middle."""
        if shape.channels not in _MODES:
            raise ValueError(
                f"pictures have 1, 3 or 4 channels, not model.channels={shape.channels}; pass one of these"
            )
        digests = []
        with ThreadPoolExecutor(_THREADS) as threads:
            for digest in threads.map(lambda file: self._check(file, shape), self._files):
                digests.append(digest)
                if progress and (len(digests) % _TOLD == 0 or len(digests) == len(self._files)):
                    progress(len(digests), len(self._files))
        return digest_of(self._names, digests)

    def take(self, numbers: np.ndarray, shape: Shape) -> np.ndarray:
        images = np.empty((len(numbers), shape.size, shape.size, shape.channels), np.uint8)

        def decode(place: int) -> None:
            with self._picture(self._files[numbers[place]]) as picture:
                if picture.mode != _MODES[shape.channels]:
                    picture = picture.convert(_MODES[shape.channels])
                if shape.resize and picture.size != (shape.size, shape.size):
                    picture = picture.resize((shape.size, shape.size), self._pillow.Resampling.BILINEAR)
                images[place] = np.asarray(picture).reshape(images.shape[1:])

        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(decode, range(len(numbers))))  # which raises here what is raised there
        return images

    def _check(self, file: str, shape: Shape) -> str:
        """The digest of a file that holds a picture of such a shape."""
        with self._picture(file) as picture:
            (width, height), mode = picture.size, picture.mode
        if mode.startswith(_DEEP):
            raise ValueError(f"{file} has pixels of more than 8 bits a channel (mode {mode}); convert it to 8 bits")
        if not shape.resize and (height, width) != (shape.size, shape.size):
            raise ValueError(
                f"{file} has {height} x {width} pixels, and the model reads {shape.size} x {shape.size}; pass "
                f"--data.resize to squeeze pictures into that, or --model.image-size"
            )
        return file_digest(file)

    @contextmanager
    def _picture(self, file: str) -> Iterator[Any]:
        """A picture as Pillow opens it; what goes wrong with it is said in a sentence."""
        with opened(file) as (content, _):
            try:
                _check_pixels(*_webp_size(content.read(_WEBP_HEAD)))
                content.seek(0)
                with self._pillow.open(content, formats=_FORMATS) as picture:
                    _check_pixels(*picture.size)
                    yield picture
            except (OSError, SyntaxError, ValueError, EOFError, self._pillow.DecompressionBombError) as error:
                raise ValueError(f"{file} is no picture that can be read ({error}); remove or replace it") from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, and {_MOST_PIXELS:,} are read at most")


def _webp_size(head: bytes) -> tuple[int, int]:
    """The width and height that the head of a WebP speaks of, for all of which Pillow takes memory when it opens one.

    Zeros for another format. The three forms are those of RFC 9649.
    """
    if len(head) == _WEBP_HEAD and head.startswith(b"RIFF"):
        match head[8:16]:
            case b"WEBPVP8X":
                return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
            case b"WEBPVP8L":
                bits = int.from_bytes(head[21:25], "little")
                return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
            case b"WEBPVP8 ":
                width, height = struct.unpack_from("<HH", head, 26)
                return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _pillow() -> Any:
    """Pillow's module Image."""
    try:
        return importlib.import_module("PIL.Image")  # checked without this extra, too
    except ImportError as error:
        raise ValueError('pictures need Pillow; run pip install "jumok[images]"') from error
