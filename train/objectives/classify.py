"""Classification of whole rows: a text by an encoder's pooled head, or an image by a vision transformer's.

Label smoothing (Szegedy et al. 2016) takes a share of each target and spreads it over all classes, in the loss only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import RowKind
from data.tokenizers.base import Tokenizer
from model.layers import split_key
from train.objectives.cross_entropy import cross_entropy
from train.objectives.objective import DeviceBatch
from train.pixels import pixel_values


@dataclass(frozen=True)
class ClassifyConfig:
    """`label_smoothing` is the share of a target that is spread over all classes."""

    label_smoothing: float = 0.0

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that mean nothing."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective.label_smoothing={self.label_smoothing} must be at least 0 and less than 1")


@dataclass(frozen=True)
class ClassifyImagesConfig(ClassifyConfig):
    """The same of images."""


class Classify:
    """The mean negative log-probability of each text's class."""

    rows: RowKind = "labelled"
    length_multiple = 1
    roles: tuple[str, ...] = ()
    definition = (
        "each example scored once, alone in its row; nats = sum of -log p(its class); accuracy = the share whose most "
        "probable class is theirs; macro_f1 = the mean over all of the model's classes of 2 true positives / "
        "(predicted + actual), 0 for a class that is neither predicted nor actual"
    )

    def __init__(self, config: ClassifyConfig):
        self.config = config
        self.coefficients = {"classify": 1.0}

    def preparation(self, tokenizer: Tokenizer) -> None:
        """Rows are learned as they are read."""

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of examples."""
        return {"classify": jnp.int32(batch["labels"].shape[0])}

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Summed nats of the classes, smoothed as the configuration says."""
        logits_BC = self._logits(model, batch, key)
        return {"classify": _nats(logits_BC, batch["labels"], self.config.label_smoothing).sum()}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Nats [B], and "classes" [B, 3, C]: 1 where a class is rightly predicted, where predicted, where actual."""
        logits_BC, labels_B = self._logits(model, batch, None), batch["labels"]
        C = logits_BC.shape[-1]
        predicted_BC, actual_BC = (jax.nn.one_hot(x_B, C, dtype=jnp.int32) for x_B in (logits_BC.argmax(-1), labels_B))
        classes_B3C = jnp.stack([predicted_BC * actual_BC, predicted_BC, actual_BC], axis=1)
        return {"nats": _nats(logits_BC, labels_B), "classes": classes_B3C}

    def figures(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | int]:
        """What is reported of summed rows; see `definition`."""
        right, predicted, actual = sums["classes"]
        examples = int(actual.sum())
        return {
            "nats_per_example": float(sums["nats"]) / examples,
            "accuracy": float(right.sum()) / examples,
            "macro_f1": float(np.mean(2 * right / np.maximum(predicted + actual, 1))),
            "examples": examples,
        }

    def _logits(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> jax.Array:
        stack_key, head_key = split_key(key)
        hidden_BLD = self._hidden(model, batch, stack_key)
        with jax.named_scope("logits"):
            return model.class_logits(hidden_BLD, key=head_key)

    def _hidden(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> jax.Array:
        return model.hidden(batch["tokens"], batch["positions"], batch["segments"], key=key)[0]


class ClassifyImages(Classify):
    """The mean negative log-probability of each image's class."""

    rows: RowKind = "images"

    def _hidden(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> jax.Array:
        return model.hidden(pixel_values(batch["images"]), key=key)[0]


@jax.named_scope("loss")
def _nats(logits_BC: jax.Array, labels_B: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """The cross-entropy [B] of the classes with their smoothed targets, float32."""
    return cross_entropy(logits_BC[:, None], labels_B[:, None], smoothing)[0][:, 0]
