"""What numbers become of an image's bytes, and how the files of transformers say so."""

from typing import Any

import jax
import jax.numpy as jnp

from model.vision import VisionConfig

PREPROCESSOR_FILE = "preprocessor_config.json"
_CENTRE = 0.5  # of bytes as numbers from 0 to 1; it is taken away, and what remains is divided by as much again
_BILINEAR = 2  # by Pillow's count


def pixel_values(images_BHWC: jax.Array) -> jax.Array:
    """Images of bytes as float32 from -1 to 1, which a model rounds to its compute dtype."""
    return images_BHWC.astype(jnp.float32) / 127.5 - 1


def to_preprocessor(config: VisionConfig) -> dict[str, Any]:
    """What a preprocessor_config.json says of `pixel_values` and of how images come to the model's size."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [_CENTRE] * config.channels,
        "image_std": [_CENTRE] * config.channels,
    }


def check_preprocessor(values: dict[str, Any], channels: int) -> None:
    """Raises ValueError where a preprocessor_config.json makes other numbers of bytes than `pixel_values`."""
    expected = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [_CENTRE] * channels,
        "image_std": [_CENTRE] * channels,
    }
    for key, value in expected.items():
        if key in values and values[key] != value:
            raise ValueError(
                f"{PREPROCESSOR_FILE}: {key}={values[key]} is not {value}, by which bytes become numbers from -1 to 1 "
                "here; to import the weights for pixels like these, remove that file"
            )
