"""The machine that every test runs on: a CPU that plays eight devices, with caches of the tests' own.

What subprocesses of a test need is set in the environment, before JAX is first imported; what only this process should
feel goes to `jax.config`, so that a command started by a test sees one device, as a user's would, unless the test sets
JAX_NUM_CPU_DEVICES for it.
"""

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling costs the tests more than running. Unoptimised code halves it and keeps gradients as close to each other
# across meshes (1.3e-6 of a tensor's largest, against 1.0e-6). XLA_FLAGS="" tests the optimised code.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Workers, subprocesses and the next run share what was compiled, however small or quick it was.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parent.parent / ".cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import numpy as np

from model.decoder import DecoderConfig
from model.positions import RopeScaling

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")  # silent broadcasting hides exchanged axes

# A session has a cache folder of its own, never the user's; its workers inherit the environment, and so share it.
_cache: tempfile.TemporaryDirectory | None = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jumok-tests-")
    os.environ["JUMOK_CACHE"] = _cache.name

# The first example compiles and is slow for it; the same examples on every machine.
hypothesis.settings.register_profile("jumok", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jumok")


def pytest_unconfigure() -> None:
    """Removes the tests' cache when the session, with all its workers, is over."""
    if _cache is not None:
        _cache.cleanup()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets that some tests read; skips where it is absent."""
    folder = Path(os.environ.get("JUMOK_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the public data sets in {folder}; JUMOK_TEST_DATA may name another folder")
    return folder


# Two tiny models that between them have every mechanism of the core: a vocabulary that needs padding, and key/value
# heads that a tensor axis of 4 must replicate.
_TINY = {
    "gpt2": DecoderConfig(num_layers=2, model_dim=32, num_heads=4, vocab_size=70, max_length=32),
    "llama": DecoderConfig(
        num_layers=2,
        model_dim=32,
        num_heads=4,
        num_kv_heads=2,
        mlp_dim=48,
        norm="rms",
        activation="swiglu",
        positions="rope",
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
        use_bias=False,
        tie_embeddings=False,
        vocab_size=70,
        max_length=32,
    ),
}


@pytest.fixture(params=_TINY)
def tiny(request: pytest.FixtureRequest) -> DecoderConfig:
    """Each family's tiny model in turn."""
    return _TINY[request.param]


@pytest.fixture
def tiny_llama() -> DecoderConfig:
    return _TINY["llama"]


@pytest.fixture
def tiny_gpt2() -> DecoderConfig:
    return _TINY["gpt2"]


@pytest.fixture(scope="session")
def packed_rows() -> dict[str, np.ndarray]:
    """Sixteen rows of 32 tokens as packing makes them: documents of 1 to 20 tokens, the last row partly padding."""
    random = np.random.default_rng(0)
    shape = (16, 32)
    opens = random.random(shape) < 0.12
    opens[:, 0] = True
    place = np.broadcast_to(np.arange(32, dtype=np.int32), shape)
    rows = {
        "tokens": random.integers(0, 70, shape, np.int32),
        "targets": random.integers(0, 70, shape, np.int32),
        "scored": np.ones(shape, bool),
        "segments": np.cumsum(opens, axis=1, dtype=np.int32),
        "positions": place - np.maximum.accumulate(np.where(opens, place, 0), axis=1),
    }
    for values in rows.values():
        values[-1, 20:] = 0
    return rows
