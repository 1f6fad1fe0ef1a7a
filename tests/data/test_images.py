"""Images come out as they were put in, whatever holds them, with their classes; a tenth is held out."""

import gzip
import struct
import sys
import zipfile
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import image_files
from data.cache import cache_folder
from data.captions import CaptionRows
from data.images import ImageDataset, ImageRows, ImagesConfig, augment, find_image_classes, open_images
from data.order import mix
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core

COUNT, SIZE = 30, 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE), np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
LABELS = np.arange(COUNT, dtype=np.uint8) % 3


def idx(array, kind=8):
    return bytes((0, 0, kind, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def mnist(folder, images=PIXELS, labels=LABELS, name="train-{}-idx{}-ubyte"):
    write(folder / name.format("labels", 1), idx(labels))
    return write(folder / name.format("images", images.ndim), idx(images))


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def pictures(
    folder, images: Iterable[Any] = COLOURS, labels: Iterable[int] = LABELS, suffix="png", names=("cat", "dog", "eel")
):
    """A folder for each class. The names of the files sort as the images are numbered, class by class."""
    pillow = pytest.importorskip("PIL.Image")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        pillow.fromarray(image).save(folder / names[label] / f"{number:03}.{suffix}")
    return str(folder)


def everything(rows: ImageRows) -> tuple[np.ndarray, list[int]]:
    batch = rows.take(np.arange(len(rows)))
    assert (batch["images"].dtype, batch["labels"].dtype) == (np.uint8, np.int32)
    return batch["images"], batch["labels"].tolist()


def assert_same(rows: ImageRows, images: np.ndarray, labels: np.ndarray) -> None:
    """All of the rows, and some of them in any order."""
    images = images.reshape(len(images), SIZE, SIZE, -1)
    found, numbers = everything(rows)
    assert np.array_equal(found, images)
    assert numbers == labels.tolist()
    order = np.random.default_rng(0).integers(0, len(rows), 2 * len(rows))
    some = rows.take(order)
    assert np.array_equal(some["images"], images[order])
    assert np.array_equal(some["labels"], labels[order])


# Files


@pytest.mark.parametrize(
    "name", ["train-{}-idx{}-ubyte", "t10k-{}.idx{}-ubyte.gz", "{}.idx{}", "emnist-{}-idx{}-ubyte.gz"]
)
@pytest.mark.parametrize("images", [PIXELS, COLOURS], ids=["grey", "colour"])
def test_idx(tmp_path, name, images):
    path = mnist(tmp_path, images, name=name)
    rows = open_images(path, SIZE, 1 if images is PIXELS else 3)
    assert rows.classes == find_image_classes(ImagesConfig(path)) == ("0", "1", "2")
    assert_same(rows, images, LABELS)


def test_labels_that_are_named(tmp_path):
    path, labels = write(tmp_path / "a.idx", idx(PIXELS)), write(tmp_path / "b.idx.gz", idx(LABELS))
    assert_same(open_images(path, SIZE, 1, label_path=labels), PIXELS, LABELS)
    # Beside the images, with or without compression.
    write(tmp_path / "c-images-idx3.gz", idx(PIXELS))
    write(tmp_path / "c-labels-idx1", idx(LABELS))
    assert_same(open_images(str(tmp_path / "c-images-idx3.gz"), SIZE, 1), PIXELS, LABELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("x_train", "y_train")])
def test_npz(tmp_path, save, names):
    save(tmp_path / "a.npz", **dict(zip(names, (COLOURS, LABELS.astype(np.int64)[:, None]), strict=True)), other=PIXELS)
    assert_same(open_images(str(tmp_path / "a.npz"), SIZE, 3), COLOURS, LABELS)


def test_copies_are_made_once_and_only_where_they_are_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    open_images(mnist(tmp_path), SIZE, 1)
    assert not (tmp_path / "cache" / "images").exists()
    paths = mnist(tmp_path, name="a-{}-idx{}.gz"), npz(tmp_path / "a.npz", x=PIXELS, y=LABELS)
    rows = [open_images(path, SIZE, 1) for path in paths]
    assert len(list(cache_folder("images").iterdir())) == 3
    monkeypatch.setattr(image_files, "cache_folder", lambda _: pytest.fail("asked to write"))
    again = [open_images(path, SIZE, 1) for path in paths]
    assert [one.digest for one in again] == [one.digest for one in rows]


@pytest.mark.parametrize("suffix", ["png", "BMP", "tif"])
def test_pictures(tmp_path, suffix):
    order = np.argsort(LABELS, kind="stable")
    path = pictures(tmp_path / "all", suffix=suffix)
    (tmp_path / "all" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "all" / ".hidden.png").write_text("nor this")
    told = []
    rows = open_images(path, SIZE, 3, progress=lambda *now: told.append(now))
    assert rows.classes == find_image_classes(ImagesConfig(path)) == ("cat", "dog", "eel")
    assert_same(rows, COLOURS[order], LABELS[order])
    assert told == [(COUNT, COUNT)]
    assert everything(open_images(path, SIZE, 3, ("eel", "fox", "dog", "cat")))[1] == [3] * 10 + [2] * 10 + [0] * 10


def test_pictures_below_the_folder_of_their_class(tmp_path):
    pictures(tmp_path / "10" / "more", COLOURS[:2], [0, 0], names=("deep",))
    pictures(tmp_path, COLOURS[2:4], [0, 0], names=("9",))
    rows = open_images(str(tmp_path), SIZE, 3)
    assert rows.classes == ("9", "10")
    assert everything(rows)[1] == [1, 1, 0, 0]


def test_pictures_are_converted_to_what_the_model_reads(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    path = pictures(tmp_path / "colour")
    order = np.argsort(LABELS, kind="stable")
    grey = np.stack([np.asarray(pillow.fromarray(image).convert("L")) for image in COLOURS[order]])
    assert_same(open_images(path, SIZE, 1), grey, LABELS[order])
    path = pictures(tmp_path / "grey", PIXELS)
    assert_same(open_images(path, SIZE, 3), np.repeat(PIXELS[order][..., None], 3, 3), LABELS[order])
    palette = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)
    picture = pillow.fromarray(palette)
    picture.putpalette([255 - i // 3 for i in range(768)])
    (tmp_path / "grey" / "cat").mkdir(exist_ok=True)
    picture.save(tmp_path / "grey" / "cat" / "0.png")
    found = open_images(path, SIZE, 3).take(np.array([0]))["images"][0]
    assert np.array_equal(found, np.repeat(255 - palette[..., None], 3, 2))


def test_pictures_are_resized_where_that_is_asked_for(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    path = pictures(tmp_path / "all", [COLOURS[0], COLOURS[1][:4]], [0, 1])
    rows = open_images(path, 3, 3, resize=True)
    expected = [pillow.fromarray(i).resize((3, 3), pillow.Resampling.BILINEAR) for i in (COLOURS[0], COLOURS[1][:4])]
    assert np.array_equal(everything(rows)[0], np.stack(list(map(np.asarray, expected))))
    with pytest.raises(
        ValueError, match=r"dog/001.png has 4 x 6 pixels, and the model reads 6 x 6; pass --data.resize"
    ):
        open_images(path, SIZE, 3)


def test_the_digest_is_of_the_content(tmp_path):
    """Of images, classes and names; not of where they lie."""
    arrays = (PIXELS, LABELS), (PIXELS[::-1], LABELS), (PIXELS, 2 - LABELS)
    digests = [open_images(mnist(tmp_path, images, labels), SIZE, 1).digest for images, labels in arrays]
    paths = [pictures(tmp_path / name) for name in ("one", "two", "three", "four")]
    (tmp_path / "three" / "cat").rename(tmp_path / "three" / "cow")
    (tmp_path / "four" / "cat" / "000.png").write_bytes((tmp_path / "four" / "dog" / "001.png").read_bytes())
    one, two, *others = (open_images(path, SIZE, 3).digest for path in paths)
    assert one == two
    assert len({*digests, one, *others}) == 6


# What can't be


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, r"images cannot be read: No such file"),
        ({"images": b"text"}, r"images is no IDX file, which begins with two zero bytes; give one, as MNIST's are, an"),
        ({"images": b"\0\0\x08\x03\0\0"}, r"images ends within its head; get it anew"),
        ({"images": idx(PIXELS, 13)}, r"images holds numbers of IDX type 13, and unsigned bytes are read, type 8"),
        ({"images": idx(LABELS)}, r"images holds an array of 1 dimensions, and images have 3, or 4 with channels"),
        (
            {"images": idx(PIXELS)[:-1]},
            r"images has 1,095 bytes, and 30 x 6 x 6 numbers with their head take 1,096; get",
        ),
        ({"images": idx(PIXELS) + b"x"}, r"images has 1,097 bytes"),
        (
            {"images": idx(PIXELS)},
            r"do not lie beside it \(looked for labels and labels.gz\); pass --data.label-path FILE",
        ),
        (
            {"images": idx(PIXELS), "labels": idx(LABELS)[:-1]},
            r"labels has 37 bytes, and 30 numbers with their head take",
        ),
        (
            {"images": idx(PIXELS), "labels": idx(LABELS[1:])},
            r"images holds 30 images, and there are 29 labels of them",
        ),
        ({"images": idx(PIXELS), "labels": idx(PIXELS)}, r"labels holds an array of 3 dimensions, and labels have one"),
        ({"images": idx(PIXELS[:0]), "labels": idx(LABELS[:0])}, r"images holds no images; give a file with some"),
        (
            {"images": idx(PIXELS), "labels": idx(0 * LABELS)},
            r"images must have labels of at least two classes, and all",
        ),
    ],
)
def test_idx_files_that_cannot_be(tmp_path, files, sentence):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(ValueError, match=sentence) as error:
        open_images(str(tmp_path / "images"), SIZE, 1)
    assert "\n" not in str(error.value)


def test_a_torn_compressed_file(tmp_path):
    path = mnist(tmp_path, name="{}-idx{}.gz")
    (tmp_path / "images-idx3.gz").write_bytes((tmp_path / "images-idx3.gz").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"images-idx3.gz is damaged after byte \d+ of its content .* make it anew"):
        open_images(path, SIZE, 1)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"a": PIXELS},
            r"holds the arrays a, and of images and labels one of these pairs is read: images and labels, x",
        ),
        ({"images": PIXELS}, r"holds the arrays images, and of images and labels"),
        (
            {"x": PIXELS / 255, "y": LABELS},
            r"holds x of float64 \[30, 6, 6\], and images are uint8 \[n, height, width\]",
        ),
        ({"x": PIXELS[0], "y": LABELS}, r"holds x of uint8 \[6, 6\], and images are uint8"),
        ({"x": PIXELS, "y": LABELS / 1}, r"holds y of float64 \[30\], and labels are integers \[n\] from 0 on"),
        ({"x": PIXELS, "y": LABELS - np.int8(1)}, r"holds y of int\d+ \[30\], and labels are integers"),
        (
            {"x": PIXELS, "y": LABELS + np.int64(1 << 32)},
            r"holds y of int64 \[30\], and .* from 0 on, below 1,048,576;",
        ),
        ({"x": PIXELS, "y": np.eye(30, dtype=int)}, r"holds y of int64 \[30, 30\], and labels are integers"),
        ({"x": PIXELS, "y": np.int64(3)}, r"holds y of int64 \[\], and labels are integers"),
        (
            {"x": PIXELS, "y": np.array([None])},
            r"holds no array of numbers as y \(.*object.*\); save one with numpy.savez",
        ),
        ({"x": PIXELS, "y": LABELS[1:]}, r"holds 30 images, and there are 29 labels of them"),
    ],
)
def test_arrays_that_cannot_be(tmp_path, arrays, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        open_images(npz(tmp_path / "a.npz", **arrays), SIZE, 1)
    assert "\n" not in str(error.value)


def test_damaged_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    npz(path, x=PIXELS, y=LABELS)
    content = bytearray(path.read_bytes())
    for damaged in (content[:-30], b"text", content.replace(PIXELS[3].tobytes(), PIXELS[4].tobytes())):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.npz is no whole .npz file \(.*\); make it anew with numpy.savez"):
            open_images(str(path), SIZE, 1)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"no array")
    with pytest.raises(ValueError, match=r"a.npz holds no array of numbers as x \("):
        open_images(str(path), SIZE, 1)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"size": 7}, r"holds images of 6 x 6 pixels, and the model reads 7 x 7; pass --model.image-size 6, or give"),
        ({"channels": 3}, r"holds images with channels=1, and the model reads 3; pass --model.channels 1"),
        ({"resize": True}, r"holds an array, and only pictures in folders are resized; leave --data.resize out"),
        (
            {"classes": ("a", "b")},
            r"has the label '2', which is not among the model's classes: a, b; correct the label",
        ),
    ],
)
def test_arrays_that_are_not_for_the_model(tmp_path, how, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_images(mnist(tmp_path), **({"size": SIZE, "channels": 1} | how))


def test_folders_that_cannot_be(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.txt").write_text("no picture")

    def refused(sentence, channels=3, **how):
        with pytest.raises(ValueError, match=sentence) as error:
            everything(open_images(str(folder), SIZE, channels, **how))
        assert "\n" not in str(error.value)

    refused(r"the folder .*all holds no pictures \(.png, .*\) in folders named like their classes; give one that does")
    pictures(folder)
    refused(
        r"cat/000.png has the label 'cat', which is not among the model's classes: dog, eel", classes=("dog", "eel")
    )
    refused(r"pictures have 1, 3 or 4 channels, not model.channels=2; pass one of these", channels=2)
    refused(r"all brings its own labels; leave --data.label-path out, which is for IDX files", label_path="a")
    picture = folder / "dog" / "001.png"
    content = picture.read_bytes()
    picture.write_text("text")
    refused(r"dog/001.png is no picture that can be read \(cannot identify image file .*\); remove or replace it")
    picture.write_bytes(content[:-40])
    refused(r"dog/001.png is no picture that can be read \(.*\); remove or replace it")
    pillow.fromarray(PIXELS[0].astype(np.uint16) * 256).save(picture)
    refused(r"dog/001.png has pixels of more than 8 bits a channel \(mode I;16\); convert it to 8 bits")
    picture.write_bytes(content)
    pillow.fromarray(PIXELS[0]).save(folder / "lost.png")
    refused(r"all/lost.png lies in no folder of its class; move it to .*all/CLASS/")


def test_pillow_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ValueError, match=r'pictures need Pillow; run pip install "jumok\[images\]"'):
        open_images(str(tmp_path), SIZE, 3)


# What is held out


def test_a_tenth_is_held_out(tmp_path):
    many = np.arange(500).astype(np.uint8)[:, None, None] + np.zeros((1, SIZE, SIZE), np.uint8)
    many[:, 0, 0] = np.arange(500) // 256
    rows = open_images(mnist(tmp_path, many, (np.arange(500) // 250).astype(np.uint8)), SIZE, 1)
    train, valid = rows.split()
    numbers = [
        (images[:, 1, 1, 0] + 256 * images[:, 0, 0, 0].astype(int)) for images, _ in map(everything, (train, valid))
    ]
    assert (len(train), len(valid)) == (450, 50)
    assert sorted(np.concatenate(numbers)) == list(range(500))
    assert 15 < sum(everything(valid)[1]) < 35, "the file is sorted by class, and both are held out"
    assert len({rows.digest, train.digest, valid.digest}) == 3
    # Runs resume by it: which ones they are may never change.
    assert numbers[1][:5].tolist() == [3, 5, 7, 8, 13]
    few = open_images(mnist(tmp_path, PIXELS[:2], LABELS[:2]), SIZE, 1)
    assert list(map(len, few.split())) == [1, 1]
    with pytest.raises(
        ValueError, match=r"images-idx3-ubyte holds one image, and none can be held out; pass --data.val"
    ):
        open_images(mnist(tmp_path, PIXELS[:1], LABELS[:1]), SIZE, 1, ("a", "b")).split()


# Augmentation


@given(st.integers(0, 3), st.booleans(), st.integers(1, 3))
def test_images_are_moved_and_mirrored_by_their_keys_alone(shift, flip, channels):
    count = 200
    images = np.random.default_rng(2).integers(1, 256, (count, 5, 4, channels), np.uint8)
    keys = mix(7, np.arange(count))
    moved = augment(images, keys, shift, flip)
    assert moved.shape == images.shape
    seen = set()
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    for number in range(count):
        candidates = {
            (down, right, mirrored): window[:, ::-1] if mirrored else window
            for down in range(2 * shift + 1)
            for right in range(2 * shift + 1)
            for window in [padded[number, down : down + 5, right : right + 4]]
            for mirrored in ((False, True) if flip else (False,))
        }
        fits = [how for how, window in candidates.items() if np.array_equal(moved[number], window)]
        assert fits
        seen.add(fits[0])
    if count > 20 * (2 * shift + 1) ** 2:
        assert len(seen) == len(candidates)
    order = np.random.default_rng(3).permutation(count)[:7]
    assert np.array_equal(augment(images[order], keys[order], shift, flip), moved[order])


def test_configurations_that_cannot_be():
    assert ImagesConfig("a").augmentation is None
    for config, sentence in (
        (ImagesConfig(), r"data.path is empty; pass --data.path with a file or folder of images"),
        (
            ImagesConfig("a", valid_label_path="b"),
            r"data.valid_label_path is of no images; pass --data.valid-path FILE",
        ),
        (ImagesConfig("a", shift=-1), r"data.shift=-1 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            config.validate()


# What a run reads

MODEL = SimpleNamespace(image_size=SIZE, channels=1, classes=(), vocab_size=300, max_length=9)


def test_a_run_reads_augmented_images_and_is_measured_by_plain_ones(tmp_path):
    path = mnist(tmp_path)
    plain = ImageDataset.open(ImagesConfig(path), MODEL)
    moved = ImageDataset.open(ImagesConfig(path, shift=1, flip=True), MODEL)
    assert plain.digest == moved.digest
    assert plain.describe() == {"images": "27 of 6 x 6 x 1, 3 classes", "held-out images": "3"}
    prepared = moved.loader(3, prepare=lambda rows, keys: {**rows, "seen": rows["images"][:, 0, 0, 0]}).rows_for(
        4, range(5)
    )
    batch = plain.loader(3).rows_for(4, range(5))
    assert np.array_equal(batch["labels"], prepared["labels"])
    assert np.array_equal(prepared["seen"], prepared["images"][:, 0, 0, 0])
    keys = mix(3, 1, np.arange(4, 9))
    assert np.array_equal(prepared["images"], augment(batch["images"], keys, 1, True))
    assert not np.array_equal(prepared["images"], batch["images"])
    for dataset in (plain, moved):
        assert dataset.held_out_rows("images") is dataset.valid
        assert_same(dataset.valid, *plain.valid.take(np.arange(3)).values())


def test_a_run_has_validation_images_of_its_own(tmp_path):
    (tmp_path / "v").mkdir()
    path, labels = write(tmp_path / "v" / "a", idx(PIXELS[:4])), write(tmp_path / "v" / "b", idx(LABELS[:4]))
    config = ImagesConfig(mnist(tmp_path), path, valid_label_path=labels)
    dataset = ImageDataset.open(config, MODEL)
    assert_same(dataset.train, PIXELS, LABELS)
    assert_same(dataset.valid, PIXELS[:4], LABELS[:4])


def test_a_decoder_reads_the_names_of_classes(tmp_path):
    decoder = SimpleNamespace(vision=MODEL, classes=("ant", "bee", "cat"), vocab_size=300, max_length=9)
    dataset = ImageDataset.open(ImagesConfig(mnist(tmp_path), tokenizer="bytes"), decoder)
    assert isinstance(dataset.tokenizer, ByteTokenizer)
    rows = dataset.held_out_rows("images")
    assert isinstance(rows, CaptionRows)
    names = [dataset.tokenizer.decode(tokens[:3]) for tokens in rows.take(np.arange(3))["targets"]]
    assert names == [decoder.classes[label] for label in everything(dataset.valid)[1]]
    with pytest.raises(
        ValueError, match=r"the bytes tokenizer has 256 bytes and one document mark, more than vocab_size=9"
    ):
        ImageDataset.open(dataset.config, SimpleNamespace(**vars(decoder) | {"vocab_size": 9}))


# Public data


def test_mnist(shared_data):
    rows = open_images(str(shared_data / "image" / "mnist" / "train-images-idx3-ubyte.gz"), 28, 1)
    assert (len(rows), rows.classes) == (60_000, tuple("0123456789"))
    first = rows.take(np.arange(3))
    assert first["labels"].tolist() == [5, 0, 4]
    assert first["images"].sum((1, 2, 3)).tolist() == [27525, 31095, 19443]
    train, valid = rows.split()
    counts = np.bincount(valid.take(np.arange(len(valid)))["labels"])
    assert (len(train), len(valid)) == (54_000, 6_000)
    assert counts.min() > 500
