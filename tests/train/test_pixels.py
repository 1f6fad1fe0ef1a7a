"""What an image's bytes become, here and in transformers, which is told of it by a file."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from model.vision import VisionConfig
from train.pixels import check_preprocessor, pixel_values, to_preprocessor

pytestmark = pytest.mark.core

SIZES: dict[str, Any] = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "image_size": 32, "patch_size": 8}


def test_bytes_become_values_from_minus_one_to_one():
    values = pixel_values(jnp.array([0, 51, 255], jnp.uint8))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [-1, -0.6, 1], rtol=1e-6)


def test_transformers_makes_the_same_of_an_image(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("PIL")
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(to_preprocessor(VisionConfig(**SIZES))))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixel_values(jnp.asarray(image)), theirs.transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_can_be_read(channels):
    check_preprocessor(to_preprocessor(VisionConfig(**SIZES, channels=channels)), channels)
    check_preprocessor({"size": 32}, channels)


@pytest.mark.parametrize(
    ("key", "value"), [("image_mean", [0.485, 0.456, 0.406]), ("do_normalize", False), ("rescale_factor", 1.0)]
)
def test_other_numbers_are_refused(key, value):
    values = to_preprocessor(VisionConfig(**SIZES)) | {key: value}
    with pytest.raises(ValueError, match=rf"preprocessor_config.json: {key}=.* remove that file"):
        check_preprocessor(values, 3)
