"""Distillation (Hinton et al. 2015): a student learns what a teacher makes of the same text, from within too.

DistilBERT (Sanh et al. 2019) compares predictions and last hidden states, TinyBERT (Jiao et al. 2019) embeddings,
hidden states and attention scores as well. Both models are encoders and weights of one state, of which the teacher's
are frozen; the student is kept. train/objectives/distill.py has the losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from model import encoder
from model.encoder import Encoder, EncoderConfig
from model.encoder_pair import EncoderPairConfig
from model.parameters import normal, param
from model.sharding import einsum

FROZEN = ("teacher.*",)  # patterns of the names of weights that are not learned
_LAYERS = "stack.layers."


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(EncoderPairConfig):
    """A teacher and a student, both with a head that predicts tokens."""

    KEPT: ClassVar[str] = "student"

    student: EncoderConfig
    teacher: EncoderConfig

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no such pair can have."""
        super().validate()
        for name, part in self.encoders.items():
            if not part.predicts_tokens:
                raise ValueError(
                    f"model.{name}.head={part.head} predicts no tokens; pass --model.{name}.head masked_lm"
                )
        self._must_agree(("vocab_size", "vocab_multiple"), "a student learns what its teacher predicts of each token")


class Distillation(nnx.Module):
    """Both encoders and, where the student is narrower, what projects its vectors to the teacher's width."""

    def __init__(self, config: DistillationConfig, rngs: nnx.Rngs):
        self.config = config
        self.student = Encoder(config.student, rngs)
        self.teacher = Encoder(config.teacher, rngs)
        widths = config.student.model_dim, config.teacher.model_dim
        self.projects = widths[0] != widths[1]
        if self.projects:
            std = normal(config.student.initial_std(widths[0]))
            self.hidden_projection = param(rngs, widths, ("embed", "features"), std, "matrix")
            self.embedding_projection = param(rngs, widths, ("embed", "features"), std, "matrix")

    def project_hidden(self, x: jax.Array) -> jax.Array:
        """The student's hidden states, [B, L, D] or of each layer [N, B, L, D], as wide as the teacher's."""
        axes = "NBL"[4 - x.ndim :]
        return einsum(f"{axes}D,DE->{axes}E", x, self.hidden_projection[...]) if self.projects else x

    def project_embedding(self, x_BLD: jax.Array) -> jax.Array:
        """The vectors that enter the student's layers, as wide as the teacher's."""
        return einsum("BLD,DE->BLE", x_BLD, self.embedding_projection[...]) if self.projects else x_BLD

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """What the student says, and the teacher with "teacher_" before it."""
        inputs = tokens_BL, positions_BL, segments_BL, types_BL
        return self.student(*inputs) | {f"teacher_{name}": x for name, x in self.teacher(*inputs).items()}

    @staticmethod
    def example(config: DistillationConfig) -> dict[str, np.ndarray]:
        """Fixed inputs by which two models of this configuration are compared."""
        return Encoder.example(config.student)


def student_from_teacher(config: DistillationConfig, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The weights of both, of which the student's are now the teacher's where both have them (DistilBERT).

    Of layers it takes its number evenly, the first and the last among them: of twelve 0, 2, 4, 7, 9 and 11, as
    DistilBERT did.

    Raises:
        ValueError: a weight has not the same shape in both.
    """
    layers = np.linspace(0, config.teacher.num_layers - 1, config.student.num_layers).round().astype(int)
    result = dict(params)
    for name in params:
        prefix, _, own_name = name.partition(".")
        theirs = params.get(f"teacher.{own_name}")
        if prefix != "student" or theirs is None:
            continue
        if own_name.startswith(_LAYERS) and not config.teacher.share_layers:
            theirs = theirs[layers]
        if theirs.shape != params[name].shape:
            raise ValueError(
                f"the student can't begin with its teacher's weights, since its {own_name} has the shape "
                f"{list(params[name].shape)} and the teacher's {list(theirs.shape)}; let it begin afresh"
            )
        result[name] = theirs
    return result


def count_parameters(config: DistillationConfig) -> int:
    """Number of parameters of both, the frozen ones and the projections among them."""
    widths = config.student.model_dim, config.teacher.model_dim
    projections = 0 if widths[0] == widths[1] else 2 * widths[0] * widths[1]
    return projections + sum(encoder.count_parameters(part) for part in config.encoders.values())
