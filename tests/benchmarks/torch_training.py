"""A training step in PyTorch: eager, with a fused optimizer."""

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from train.optimizer import OptimizerConfig

torch: Any = importlib.import_module("torch")  # not by `import`: types are checked where it is not installed


class Trainer:
    """Steps that lower `loss()` by our optimizer's settings; of the `weights`, by name, the `matrices` are decayed."""

    def __init__(
        self,
        loss: Callable[[], Any],
        weights: Mapping[str, Any],
        matrices: Collection[str],
        config: OptimizerConfig,
    ):
        self.loss, self.weights, self.clip_norm = loss, list(weights.values()), config.value("clip_norm")
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
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        self.optimizer.step()
        return loss.item()
