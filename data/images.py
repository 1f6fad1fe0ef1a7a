"""Images with a class: rows of one image each, a tenth of them held out, moved and mirrored at random."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from data.cache import digest_of
from data.captions import CaptionRows
from data.dataset import Prepare, RowKind, check_vocabulary
from data.image_files import Images, Shape, find_images
from data.loader import Batch, Loader, Rows
from data.order import mix, permute
from data.progress import Progress
from data.tokenizers.base import Tokenizer
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer

_DOWN, _RIGHT, _MIRRORED = range(3)  # what is drawn by a row's key


@dataclass(frozen=True)
class ImagesConfig:
    """The images that are learned from; their size and number of channels are the model's.

    Attributes:
        path: an IDX file, as MNIST's are; an .npz with the arrays images and labels; or a folder with a folder of
            pictures for each class.
        valid_path: the same for validation; without it a tenth is held out.
        label_path: the IDX file of the labels; by default the one beside the images that is named like theirs.
        valid_label_path: the same for validation.
        resize: squeeze pictures of other sizes into the model's, bilinearly.
        shift: images are moved by so many pixels at most, at random, both down or up and sideways; what comes in is 0.
        flip: mirror images left to right, at random, one in two.
        tokenizer: of the names of classes where a decoder learns to write these: "bytes", "characters", or the folder
            or file of one.
        allow_changed: resume although the data are not what the run began with.
    """

    path: str = ""
    valid_path: str | None = None
    label_path: str | None = None
    valid_label_path: str | None = None
    resize: bool = False
    shift: int = 0
    flip: bool = False
    tokenizer: str = ""
    allow_changed: bool = field(default=False, metadata={"operational": True})

    def validate(self) -> None:
        """Refuses what can't be.

        Raises:
            ValueError: with the field and its value.
        """
        if not self.path:
            raise ValueError("data.path is empty; pass --data.path with a file or folder of images")
        if self.valid_label_path and not self.valid_path:
            raise ValueError("data.valid_label_path is of no images; pass --data.valid-path FILE")
        if self.shift < 0:
            raise ValueError(f"data.shift={self.shift} must be at least 0")

    def names(self) -> str:
        """What is learned from, for sentences."""
        return repr(self.path)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens a row: images have none."""
        return ()

    @property
    def augmentation(self) -> Prepare | None:
        """What moves and mirrors the images of rows by their keys (uint64 [n]); None where nothing does."""
        if not self.shift and not self.flip:
            return None
        return lambda rows, keys: {**rows, "images": augment(rows["images"], keys, self.shift, self.flip)}


class ImageRows(Rows):
    """Rows of one image and its class each.

    Args:
        images: where they are.
        shape: what the model reads.
        classes: the names of the classes, in the order of their numbers.
        digest: of what is in the rows.
        labels: the number of each image's class, int32 [images].
        numbers: of the images that are in the rows, int64 [rows].
    """

    def __init__(
        self,
        images: Images,
        shape: Shape,
        classes: tuple[str, ...],
        digest: str,
        labels: np.ndarray,
        numbers: np.ndarray,
    ):
        self.shape, self.classes, self.digest = shape, classes, digest
        self._images, self._labels, self._numbers = images, labels, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers (int64 [n]).

        Returns:
            images: uint8 [n, size, size, channels]. labels: int32 [n].
        """
        numbers = self._numbers[indices]
        return {"images": self._images.take(numbers, self.shape), "labels": self._labels[numbers]}

    def split(self) -> tuple["ImageRows", "ImageRows"]:
        """Holds out a tenth: the last one of a fixed shuffle, since in many files one class follows the other.

        Which, is a function of the number of images alone.

        Raises:
            ValueError: there is only one image.
        """
        count = len(self)
        if count < 2:
            raise ValueError(f"{self._images.path} holds one image, and none can be held out; pass --data.valid-path")
        held_out = permute(np.arange(count), count, mix(count)) >= count - max(1, count // 10)

        def part(name: str, chosen: np.ndarray) -> ImageRows:
            digest, numbers = digest_of(self.digest, name), self._numbers[chosen]
            return ImageRows(self._images, self.shape, self.classes, digest, self._labels, numbers)

        return part("learned", ~held_out), part("held out", held_out)


def find_image_classes(config: ImagesConfig) -> tuple[str, ...]:
    """The names of the classes of the training images, in the order in which they are numbered.

    They are the names of folders, or the numbers 0, 1, ... as text.

    Raises:
        ValueError: there are fewer than two, or as `open_images`.
    """
    config.validate()
    return find_images(config.path, config.label_path).classes


def open_images(
    path: str,
    size: int,
    channels: int,
    classes: tuple[str, ...] = (),
    label_path: str | None = None,
    resize: bool = False,
    progress: Progress | None = None,
) -> ImageRows:
    """The images at a path, a row each.

    Args:
        path: an IDX file, an .npz or a folder (data/image_files.py).
        size: pixels that images are high and wide.
        channels: of a pixel. Pictures of others are converted, arrays are not.
        classes: the model's, among which each image's must be; by default those that there are.
        label_path: the IDX file of the labels, where it does not lie beside the images.
        resize: squeeze pictures of other sizes.
        progress: called with the number of pictures looked at and of all.

    Raises:
        ValueError: no images there, none of this size, without classes or with others; or a damaged file.
    """
    images, shape = find_images(path, label_path), Shape(size, channels, resize)
    classes = classes or images.classes
    labels = images.labels(classes)
    return ImageRows(images, shape, classes, images.check(shape, progress), labels, np.arange(len(labels)))


def augment(images: np.ndarray, keys: np.ndarray, shift: int = 0, flip: bool = False) -> np.ndarray:
    """Images moved and mirrored at random, each by its key alone.

    Args:
        images: uint8 [n, height, width, channels].
        keys: uint64 [n].
        shift: pixels that an image is moved at most, down or up, and left or right; what comes in is 0.
        flip: whether one image in two is mirrored, left to right.
    """
    if shift:
        padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], (1, 2, 3))
        down, right = (mix(keys, what) % np.uint64(2 * shift + 1) for what in (_DOWN, _RIGHT))
        images = windows[np.arange(len(images)), down, right, 0]
    if flip:
        mirrored = mix(keys, _MIRRORED) % np.uint64(2) == 0
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    return images


@dataclass(frozen=True)
class ImageDataset:
    """The images that a run learns from, and those that it is measured by.

    Where there is a tokenizer, rows hold the classes' names as texts of at most `max_length` tokens (data/captions.py).
    """

    config: ImagesConfig
    train: ImageRows
    valid: ImageRows
    tokenizer: Tokenizer | None = None
    max_length: int = 0

    @classmethod
    def open(
        cls, config: ImagesConfig, model: Any, tokenizer: Tokenizer | None = None, progress: Progress | None = None
    ) -> Self:
        """The images that `model`, a configuration, reads; `tokenizer` is the run's, or None where it begins.

        Raises:
            ValueError: as `open_images`; one image is not enough to hold any out; or the tokenizer can't be had, or
                has more ids than the model.
        """
        config.validate()
        vision, resize = getattr(model, "vision", model), config.resize
        size, channels = vision.image_size, vision.channels
        train = open_images(config.path, size, channels, model.classes, config.label_path, resize, progress)
        if config.valid_path:
            labels = config.valid_label_path
            valid = open_images(config.valid_path, size, channels, train.classes, labels, resize, progress)
        else:
            train, valid = train.split()
        if not config.tokenizer:
            return cls(config, train, valid)
        tokenizer = tokenizer or _make_tokenizer(config.tokenizer, train.classes)
        check_vocabulary(tokenizer, model.vocab_size)
        return cls(config, train, valid, tokenizer, model.max_length)

    @property
    def digest(self) -> str:
        """The hexadecimal SHA-256 of images, classes and their split: by it changed data are found on resume."""
        return digest_of(self.train.digest, self.valid.digest)

    def loader(self, seed: int, kind: RowKind = "images", prepare: Prepare | None = None) -> Loader:
        """The batches of the training images, as a function of the examples seen (data/loader.py).

        Images are augmented before `prepare` sees them. Their `kind` is known already.
        """
        steps = [step for step in (self.config.augmentation, prepare) if step]

        def prepared(rows: Batch, keys: np.ndarray) -> Batch:
            for step in steps:
                rows = step(rows, keys)
            return rows

        return Loader([self._rows(self.train)], seed, prepared)

    def held_out_rows(self, kind: RowKind) -> Rows:
        """The validation images, as they are."""
        return self._rows(self.valid)

    def describe(self) -> dict[str, str]:
        """What a run learns from and what it is measured by, in words."""
        size, channels, _ = self.train.shape
        return {
            "images": f"{len(self.train):,} of {size} x {size} x {channels}, {len(self.train.classes)} classes",
            "held-out images": f"{len(self.valid):,}",
        }

    def _rows(self, images: ImageRows) -> Rows:
        if self.tokenizer is None:
            return images
        return CaptionRows(images, images.classes, self.tokenizer, self.max_length)


def _make_tokenizer(name: str, classes: tuple[str, ...]) -> Tokenizer:
    match name:
        case "bytes":
            return ByteTokenizer()
        case "characters":
            return CharacterTokenizer.of(classes)
        case path:
            return load_tokenizer(path)
