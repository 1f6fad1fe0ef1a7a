"""A decoder that goes on from an image: a vision transformer's vectors stand where a prompt would.

What the vision transformer makes of an image, a vector for each patch and one for all, is projected to the decoder's
width and stands before the text (as in LLaVA, Liu et al. 2023). The decoder's mask stays causal: all text sees the
whole image, and its vectors need not see each other again, since each has seen the whole image already.

The text counts its positions from 0, and the image's are before them: -M, ..., -1. A decoder of text alone thus finds
its text where it always stood. Learned positions are the text's only; an image's vectors bring theirs along.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import decoder, vision
from model.config import check_classes, check_part
from model.decoder import Decoder, DecoderConfig
from model.layers import Dense, dropout, split_key
from model.parameters import normal
from model.stack import layer_matrices
from model.vision import Vision, VisionConfig


@dataclass(frozen=True, kw_only=True)
class ImageDecoderConfig:
    """A vision transformer without a head, and the decoder that reads it and writes.

    `classes` are the names of the images' classes, in order, where it is these that are written.
    """

    vision: VisionConfig
    decoder: DecoderConfig
    classes: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        """Number of the tokens that are written."""
        return self.decoder.vocab_size

    @property
    def max_length(self) -> int:
        """Tokens of text at most; the image's vectors are not among them."""
        return self.decoder.max_length

    @property
    def prefix_length(self) -> int:
        """Number of an image's vectors."""
        return 1 + self.vision.num_patches

    def resolved(self) -> Self:
        """The same configuration with nothing left to follow from other fields."""
        return dataclasses.replace(self, vision=self.vision.resolved(), decoder=self.decoder.resolved())

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no such model can have."""
        check_part("vision", self.vision)
        check_part("decoder", self.decoder)
        if self.vision.head != "none":
            raise ValueError(
                f"model.vision.head={self.vision.head} would never be learned, since the decoder reads what is before "
                "it; set it to none"
            )
        check_classes(self.classes, len(self.classes))


class ImageDecoder(nnx.Module):
    """Maps images, and the text so far, to the logits of the text's next tokens."""

    def __init__(self, config: ImageDecoderConfig, rngs: nnx.Rngs):
        self.config = config
        widths = config.vision.model_dim, config.decoder.model_dim
        self.vision = Vision(config.vision, rngs)
        self.projection = Dense(widths, ("embed", "features"), normal(config.decoder.initial_std(widths[0])), rngs)
        self.decoder = Decoder(config.decoder, rngs)

    def hidden(
        self,
        images_BHWC: jax.Array,
        tokens_BL: jax.Array,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The decoder's output for the text [B, L, D], and what was captured: of images with "vision_" before its name.

        What is captured of the decoder is of the image's M vectors and the text's L. `key` turns dropout on.
        """
        vision_key, embedding_key, stack_key = split_key(key, 3)
        of_vision = tuple(name for name in capture if name.startswith("vision_"))
        image_BMD, found = self.vision.hidden(
            images_BHWC, key=vision_key, capture=tuple(name.removeprefix("vision_") for name in of_vision)
        )
        M, L = image_BMD.shape[1], tokens_BL.shape[1]
        positions_1L = jnp.arange(-M, L)[None]
        text_BLD = self.decoder.embed(tokens_BL, positions_1L[:, M:])
        x_BLD = jnp.concatenate([self.projection(image_BMD), text_BLD], axis=1)
        hidden_BLD, captured = self.decoder.transform(
            dropout(x_BLD, self.config.decoder.dropout, embedding_key),
            positions_1L,
            key=stack_key,
            capture=tuple(name for name in capture if name not in of_vision),
        )
        return hidden_BLD[:, M:], captured | {f"vision_{name}": array for name, array in found.items()}

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities [B, L, V] of the next token, over the padded vocabulary."""
        return self.decoder.logits(hidden_BLD)

    def __call__(self, images_BHWC: jax.Array, tokens_BL: jax.Array) -> jax.Array:
        """Logits [B, L, V] over the padded vocabulary."""
        return self.logits(self.hidden(images_BHWC, tokens_BL)[0])

    @staticmethod
    def example(config: ImageDecoderConfig) -> dict[str, np.ndarray]:
        """Fixed inputs by which two models of this configuration are compared."""
        return Vision.example(config.vision) | Decoder.example(config.decoder)


def count_parameters(config: ImageDecoderConfig) -> int:
    """Number of trainable parameters: tied tensors once, the padding of the vocabulary not at all."""
    projection = (config.vision.model_dim + 1) * config.decoder.model_dim
    return vision.count_parameters(config.vision) + projection + decoder.count_parameters(config.decoder)


def train_flops_per_row(config: ImageDecoderConfig, length: int) -> int:
    """Operations of the matrix products of an image and a text of `length` tokens: 6 a weight and token.

    Forward and backward, none recomputed. The decoder's causal attention counts as computed, for half of the square.
    """
    text = config.decoder
    rows = config.prefix_length + length
    layer = layer_matrices(text) + text.num_heads * (text.head_size + text.value_head_size) * rows // 2
    projections = text.model_dim * (config.prefix_length * config.vision.model_dim + length * text.vocab_size)
    return vision.train_flops_per_row(config.vision) + 6 * (text.num_layers * rows * layer + projections)
