"""The vision transformer (ViT, Dosovitskiy et al. 2020): an image as a sequence of patches, read by an encoder's stack.

A learned token stands before the patches, and what the stack makes of it is what is known of the whole image.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.block import Context
from model.config import StackConfig, check_classes, check_least
from model.layers import Dense, Norm, add_bias, dropout, split_key
from model.mask import Mask
from model.parameters import normal, param, zeros
from model.sharding import constrain, einsum
from model.stack import Stack, layer_matrices, layer_parameters, norm_parameters

Head = Literal["none", "pooler", "classification"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig(StackConfig):
    """A vision transformer for square images of `image_size` pixels a side, cut into patches of `patch_size`."""

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    norm_epsilon: float = 1e-6
    activation: Literal["relu", "gelu", "gelu_tanh", "swiglu", "geglu"] = "gelu"
    init: Literal["gpt2", "normal", "fan_in"] = "normal"
    head: Head = "classification"
    num_classes: int = 1000  # of the classification head
    classes: tuple[str, ...] = ()  # their names, in order; empty: they have none

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_inputs(self) -> int:
        """Number of values of a patch."""
        return self.channels * self.patch_size**2

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no vision transformer can have."""
        super().validate()
        check_least(self, 1, "image_size", "patch_size", "channels", "num_classes")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"model.image_size={self.image_size} must be a multiple of model.patch_size={self.patch_size}; "
                f"try image_size {-(-self.image_size // self.patch_size) * self.patch_size}"
            )
        check_classes(self.classes, self.num_classes)
        self._check_choices("vision transformers", _CHOICES)


_CHOICES = {
    "norm_position": ("before",),
    "positions": ("learned",),
    "window": (None,),
    "share_layers": (False,),
}


class Vision(nnx.Module):
    """Maps images to vectors that have seen the whole image, and those to what the configuration's head says."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.config = config
        D, C, P = config.model_dim, config.channels, config.patch_size
        spread = normal(config.embedding_std)
        axes = ("channels", "pixels", "pixels", "embed")
        self.patch = param(rngs, (C, P, P, D), axes, normal(config.initial_std(config.patch_inputs)), "matrix")
        self.patch_bias = param(rngs, (D,), ("norm",), zeros, "bias")
        self.class_token = param(rngs, (D,), ("norm",), spread, "embedding")
        self.positions = param(rngs, (1 + config.num_patches, D), ("positions", "embed"), spread, "embedding")
        self.stack = Stack(config, rngs)
        self.norm = Norm(D, config.norm, config.norm_epsilon, rngs, bias=config.norm_bias)
        if config.head == "pooler":
            self.pooler = Dense((D, D), ("embed", "features"), normal(config.initial_std(D)), rngs)
        elif config.head == "classification":
            self.classifier = Dense((D, config.num_classes), ("embed", "classes"), zeros, rngs)

    def hidden(
        self, images_BHWC: jax.Array, *, key: jax.Array | None = None, capture: tuple[str, ...] = ()
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The normed output of the stack [B, L, D], the class token first, and what was captured of its layers.

        Images may be of any height and width that the patches divide: positions are interpolated where these are not
        the configuration's. `key` turns dropout on.
        """
        embedding_key, stack_key = split_key(key)
        x_BLD = dropout(self.embed(images_BHWC), self.config.dropout, embedding_key)
        x_BLD, captured = self.stack(x_BLD, Context(Mask(causal=False)), key=stack_key, capture=capture)
        return self.norm(x_BLD), captured

    def embed(self, images_BHWC: jax.Array) -> jax.Array:
        """The vectors [B, L, D] that enter the stack: the class token, and the patches row by row."""
        (_, *sides, channels), size = images_BHWC.shape, self.config.patch_size
        if channels != self.config.channels or sides[0] % size or sides[1] % size:
            raise ValueError(
                f"images of {sides[0]} x {sides[1]} pixels with {channels} channels must have "
                f"{self.config.channels} channels, and sides that are multiples of the patches' {size} pixels"
            )
        patches_BLCPQ = cut(images_BHWC.astype(self.patch[...].dtype), size)
        x_BLD = add_bias(einsum("BLCPQ,CPQD->BLD", patches_BLCPQ, self.patch[...]), self.patch_bias[...])
        positions_LD = constrain(self.positions[...], "positions", "act_embed")
        first_1D, grid_LD = positions_LD[:1] + self.class_token[None], positions_LD[1:]
        if sides != [self.config.image_size] * 2:
            grid_LD = resized(grid_LD, sides[0] // size, sides[1] // size)
        x_BLD = add_bias(jnp.pad(x_BLD, ((0, 0), (1, 0), (0, 0))), jnp.concatenate([first_1D, grid_LD]))
        return constrain(x_BLD, "act_batch", "act_length", "act_embed")

    def pool(self, hidden_BLD: jax.Array) -> jax.Array:
        """A summary of each image [B, D], made of the class token."""
        return jnp.tanh(self.pooler(hidden_BLD[:, 0]))

    def class_logits(self, hidden_BLD: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Unnormalised log-probabilities [B, C] of each image's classes.

        `key` is taken as by encoders, and does nothing: a classifier's input is not dropped here.
        """
        return self.classifier(hidden_BLD[:, 0])

    def __call__(self, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """What the configuration's head says: "class_logits"; or "hidden", and "pooled" where it pools."""
        hidden_BLD, _ = self.hidden(images_BHWC)
        if self.config.head == "classification":
            return {"class_logits": self.class_logits(hidden_BLD)}
        return {"hidden": hidden_BLD} | ({"pooled": self.pool(hidden_BLD)} if self.config.head == "pooler" else {})

    @staticmethod
    def example(config: VisionConfig) -> dict[str, np.ndarray]:
        """Fixed inputs by which two models of this configuration are compared: two images, values from -1 to 1."""
        shape = (2, config.image_size, config.image_size, config.channels)
        value_BHWC = np.arange(np.prod(shape)).reshape(shape) * 7919 % 256
        return {"images_BHWC": (value_BHWC / 127.5 - 1).astype(np.float32)}


def cut(images_BHWC: jax.Array, size: int) -> jax.Array:
    """The patches of images, row by row, as [B, L, C, P, Q]."""
    B, H, W, C = images_BHWC.shape
    rows = images_BHWC.reshape(B, H // size, size, W // size, size, C)
    return rows.transpose(0, 1, 3, 5, 2, 4).reshape(B, -1, C, size, size)


def resized(positions_LD: jax.Array, rows: int, columns: int) -> jax.Array:
    """The positions of a square grid of patches, interpolated for a grid of another size: [rows * columns, D].

    Bicubic, as torch.nn.functional.interpolate does it with align_corners=False, in float32.
    """
    side = round(positions_LD.shape[0] ** 0.5)
    grid_IJD = positions_LD.reshape(side, side, -1).astype(jnp.float32)
    grid_HJD = jnp.einsum("HI,IJD->HJD", cubic_weights(side, rows), grid_IJD)
    grid_HWD = jnp.einsum("WJ,HJD->HWD", cubic_weights(side, columns), grid_HJD)
    return grid_HWD.reshape(rows * columns, -1).astype(positions_LD.dtype)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """How much of each of `old` evenly spaced samples each of `new` ones takes, [new, old] float32.

    Cubic convolution (Keys 1981) with a = -0.75 over the four nearest samples, of which those past an edge are taken to
    be the edge's.
    """
    a = -0.75
    place = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        sample = np.floor(place).astype(int) + offset
        x = np.abs(place - sample)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        weights[np.arange(new), sample.clip(0, old - 1)] += np.where(x <= 1, near, far)
    return weights.astype(np.float32)


def count_parameters(config: VisionConfig) -> int:
    """Number of trainable parameters."""
    D = config.model_dim
    heads = {"none": 0, "pooler": (D + 1) * D, "classification": (D + 1) * config.num_classes}
    embeddings = config.patch_inputs * D + D + D + (1 + config.num_patches) * D
    layers = config.num_layers * layer_parameters(config)
    return embeddings + layers + norm_parameters(config, D) + heads[config.head]


def matrix_parameters(config: VisionConfig) -> int:
    """Number of the weights that a patch is multiplied by, once each: its embedding, and the layers.

    The class token meets the layers only; what is done once an image, the head, is left out, as are positions, norms
    and biases.
    """
    return config.patch_inputs * config.model_dim + config.num_layers * layer_matrices(config)


def train_flops_per_row(config: VisionConfig) -> int:
    """Operations of the matrix products of one image, forward and backward, none recomputed: 6 a weight and token."""
    D, length = config.model_dim, 1 + config.num_patches
    heads = {"none": 0, "pooler": D * D, "classification": D * config.num_classes}
    layer = layer_matrices(config) + config.num_heads * (config.head_size + config.value_head_size) * length
    patches = config.num_patches * config.patch_inputs * D
    return 6 * (patches + config.num_layers * length * layer + heads[config.head])
