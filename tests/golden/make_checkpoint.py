"""Writes run.zip and run.npz beside it: a run of two steps as the program saves it, and the arrays of its checkpoint.

JAX_PLATFORMS=cpu python tests/golden/make_checkpoint.py; made with format 1 of checkpoints, JAX 0.10.2, Orbax 0.12.8.
What lies there stays as it is, since later versions have to go on with it: a new format gets a run of its own.
"""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

from data.dataset import DataConfig
from model.decoder import DecoderConfig
from train.checkpoint import Checkpoints
from train.config import LogConfig, RunConfig, SampleConfig
from train.console import Console
from train.mesh import make_mesh
from train.optimizer import OptimizerConfig
from train.program import Program
from train.train import _items, main

GOLDEN = Path(__file__).resolve().parent
STEP = 2
CONFIG = RunConfig(
    model=DecoderConfig(
        num_layers=1,
        model_dim=4,
        num_heads=1,
        vocab_size=8,
        vocab_multiple=8,
        max_length=8,
        norm="rms",
        activation="swiglu",
        positions="rope",
        use_bias=False,
    ),
    data=DataConfig(path="text.txt", max_length=8, tokenizer="characters"),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
    log=LogConfig(every=1, tensorboard=False),
    sample=SampleConfig(tokens=0),
    run_dir="run",
    steps=STEP + 1,
    stop_after=STEP,
    batch_size=8,
)


def write_golden() -> None:
    """Trains in a temporary folder, so that no name of this machine is kept, and takes over what is to stay."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("text.txt").write_text("abcabd" * 40)
        main(CONFIG, Console())
        abstract = _items(Program.of(CONFIG, make_mesh(CONFIG.mesh)).abstract)
        with Checkpoints("run/checkpoints") as checkpoints:
            items = checkpoints.restore(STEP, abstract)
        leaves = jax.tree_util.tree_leaves_with_path(items)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
        np.savez_compressed(GOLDEN / "run.npz", **arrays)
        Path("run/lock").unlink()
        shutil.make_archive(str(GOLDEN / "run"), "zip", base_dir="run")
        os.chdir(GOLDEN)


if __name__ == "__main__":
    write_golden()
