"""PyTorch where JAX computes, and a training step in it, with a fused optimizer: eager on CPUs, compiled on GPUs."""

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from train.optimizer import OptimizerConfig

torch: Any = importlib.import_module("torch")  # not by `import`: types are checked where it is not installed
DEVICE = "cpu" if jax.default_backend() == "cpu" else "cuda"


def on_device(array: np.ndarray) -> Any:
    """A tensor with the values of an array; whole numbers as PyTorch indexes by them."""
    tensor = torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else np.ascontiguousarray(array))
    return tensor.to(DEVICE)


def awaited(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that returns when its work is done, on a GPU too."""

    def wait() -> Any:
        result = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    return wait


class Trainer:
    """Steps that lower `loss()` by our optimizer's settings; of the `weights`, by name, the `matrices` are decayed."""

    def __init__(
        self,
        loss: Callable[[], Any],
        weights: Mapping[str, Any],
        matrices: Collection[str],
        config: OptimizerConfig,
    ):
        self.loss = loss if DEVICE == "cpu" else torch.compile(loss)
        self.weights, self.clip_norm = list(weights.values()), config.value("clip_norm")
        decayed = [weight for name, weight in weights.items() if name in matrices]
        others = [weight for name, weight in weights.items() if name not in matrices]
        groups = [
            {"params": decayed, "weight_decay": config.value("weight_decay")},
            {"params": others, "weight_decay": 0.0},
        ]
        rate, *betas, epsilon = map(config.value, ("learning_rate", "b1", "b2", "epsilon"))
        self.optimizer = torch.optim.AdamW(groups, rate, betas, epsilon, fused=True)

    def step(self) -> float:
        """The loss before the update."""
        self.optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE != "cpu"):  # as our precision=auto has it
            loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        self.optimizer.step()
        return loss.item()
