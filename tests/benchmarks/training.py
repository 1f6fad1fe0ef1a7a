"""A training step: AdamW with clipping on one batch that lies ready, beside the same step in PyTorch."""

import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from timing import interleaved

from data.dataset import DataConfig
from model.cost import train_flops_per_token
from model.decoder import DecoderConfig
from model.presets import PRESETS
from train.config import RunConfig, resolve
from train.hardware import mfu, peak_flops
from train.mesh import MeshConfig, make_mesh, place_batch
from train.optimizer import OptimizerConfig
from train.program import Program


@dataclass(frozen=True)
class Size:
    """A model and the rows of a batch, each as long as the model allows."""

    model: DecoderConfig
    batch_size: int
    accelerator: bool = False  # too large for a CPU


_SMALL = DecoderConfig(num_layers=4, model_dim=128, num_heads=4, vocab_size=66, max_length=64)
_LARGER = DecoderConfig(num_layers=6, model_dim=384, num_heads=6, vocab_size=66, max_length=256)
SIZES = {
    "4x128": Size(_SMALL, 12),  # the recipe char_shakespeare
    "6x384": Size(_LARGER, 8),
    "6x384-v8192": Size(replace(_LARGER, vocab_size=8192), 8),
    "gpt2-124m": Size(replace(PRESETS["gpt2-124m"], dropout=0.0, attention_dropout=0.0), 32, accelerator=True),
}
_OPTIMIZER = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0)
_CHECKED_STEPS = 3


def measure(name: str, repetitions: int) -> dict[str, Any]:
    """The row of one size: seconds a step."""
    size, device = SIZES[name], jax.devices()[0]
    if size.accelerator and device.platform == "cpu":
        return {"not_run": "needs an accelerator"}
    length, rows = size.model.max_length, size.batch_size
    config = resolve(RunConfig(size.model, DataConfig(max_length=length), optimizer=_OPTIMIZER, batch_size=rows))
    batch = _batch(rows, length, size.model.vocab_size)
    program = Program.of(config, make_mesh(MeshConfig(data=1), [device]))
    ours = _Ours(program, batch)
    systems = {"jumok": ours.step}
    agreement = None
    # Comparing is for CPUs: there one process can hold both without starving either of memory.
    if device.platform == "cpu" and importlib.util.find_spec("torch"):
        trainer = _trainer(program, batch)
        systems["torch"] = trainer.step
        agreement = _agreement(ours, trainer)
    samples = interleaved(systems, repetitions)
    flops, peak = train_flops_per_token(size.model, length), peak_flops(device)
    utilisation = [mfu(rows * length / seconds, flops, peak) for seconds in samples["jumok"]["wall"]]
    return {
        "what": f"{rows} rows of {length} tokens a step, {config.precision}, vocabulary {size.model.vocab_size}",
        "columns": [
            ("CPU ms / step", "cpu", None),
            ("ms / step", "wall", None),
            ("tokens / s", "wall", rows * length),
        ],
        "samples": samples,
        "mfu": utilisation if peak else None,
        "agreement": agreement,
    }


class _Ours:
    """The compiled step of `jumok train`, and its state."""

    def __init__(self, program: Program, batch: dict[str, np.ndarray]):
        self._compiled = program.compile_step({name: array[0] for name, array in batch.items()})
        self._state = program.first_state()
        rows = len(batch["tokens"])
        self._batch = place_batch(program.mesh, rows, lambda places: {n: a[places] for n, a in batch.items()})

    def step(self) -> float:
        """The loss, which is read back, so that the step is done."""
        self._state, metrics = self._compiled(self._state, self._batch)
        jax.block_until_ready(self._state)
        return float(metrics["loss"])


def _batch(rows: int, length: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Random tokens as packing gives them when a row is one document."""
    stream = np.random.default_rng(0).integers(0, vocab_size, (rows, length + 1), np.int32)
    return {
        "tokens": stream[:, :-1].copy(),
        "targets": stream[:, 1:].copy(),
        "scored": np.ones((rows, length), bool),
        "segments": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }


def _trainer(program: Program, batch: dict[str, np.ndarray]) -> Any:
    from torch_gpt2 import GPT2, Trainer

    optimizer = program.config.optimizer
    model = GPT2(program.plan, program.first_state().params)
    rate, decay, clip = optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm
    return Trainer(model, batch["tokens"], batch["targets"], rate, optimizer.b2, decay, clip)


def _agreement(ours: _Ours, theirs: Any) -> str:
    """Both take a few steps from the same weights; raises where they do not learn the same."""
    losses = np.array([(ours.step(), float(theirs.step())) for _ in range(_CHECKED_STEPS)])
    largest = float(np.max(np.abs(losses[:, 0] / losses[:, 1] - 1)))
    if not largest < 1e-4:
        raise ArithmeticError(f"jumok and torch do not compute the same: losses {losses.tolist()}")
    return f"losses of the first {_CHECKED_STEPS} steps agree to {largest:.0e}"
