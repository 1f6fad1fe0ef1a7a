"""Images with the names of their classes as texts: what a decoder that reads images learns to write."""

from collections.abc import Sequence

import numpy as np

from data.loader import Batch, Rows
from data.tokenizers.base import Tokenizer


class CaptionRows(Rows):
    """Rows of images and labels, each label replaced by its class's name.

    An image's row has tokens, targets (int32) and scored (bool), each [T] for the longest name: the decoder reads the
    start token and the name, and learns the name and the end token.

    Args:
        images: rows with "images" and "labels".
        classes: the names, in the order of the labels.
        tokenizer: of the names.
        max_length: the most tokens that the decoder reads.

    Raises:
        ValueError: classes without names, names that are too long or that the tokenizer does not tell apart, or a
            tokenizer without a start or an end token.
    """

    def __init__(self, images: Rows, classes: Sequence[str], tokenizer: Tokenizer, max_length: int):
        if not classes:
            raise ValueError("the images' classes have no names to be learned; give them with --model.classes")
        start, end = tokenizer.special("start"), tokenizer.special("end")
        named: dict[tuple[int, ...], str] = {}
        for name, tokens in zip(classes, tokenizer.encode_batch(classes), strict=True):
            text = tuple(tokens.tolist())
            if text in named:
                raise ValueError(
                    f"the {tokenizer.kind} tokenizer makes the same tokens of the names {named[text]!r} and {name!r}; "
                    "take another tokenizer, or other names"
                )
            named[text] = name
        length = 1 + max(map(len, named))
        if length > max_length:
            name = named[max(named, key=len)]
            raise ValueError(
                f"the name of the class {name!r} takes {length} tokens with its start token, more than the model's "
                f"max_length={max_length}; make that {length}, or take a shorter name"
            )
        shape = (len(named), length)
        self._tokens, self._targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self._scored = np.arange(length) <= np.array([len(tokens) for tokens in named])[:, None]
        for number, tokens in enumerate(named):
            self._tokens[number, : len(tokens) + 1] = start, *tokens
            self._targets[number, : len(tokens) + 1] = *tokens, end
        self._images = images

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._images)

    def take(self, indices: np.ndarray) -> Batch:
        """The images of these numbers, and their names."""
        batch = self._images.take(indices)
        labels = batch["labels"]
        names = {"tokens": self._tokens[labels], "targets": self._targets[labels], "scored": self._scored[labels]}
        return {"images": batch["images"], **names}

    @property
    def left_out(self) -> str:
        """What the images leave out."""
        return self._images.left_out
