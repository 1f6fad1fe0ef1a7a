"""Distillation of masked language models: a student learns what its teacher makes of the same masked rows.

DistilBERT (Sanh et al. 2019) learns the teacher's predictions, softened by a temperature (Hinton et al. 2015), the
masked tokens, and the direction of the last hidden states: coefficients 5, 2 and 1. TinyBERT (Jiao et al. 2019) learns
embeddings, hidden states and attention scores, each layer those of the teacher's layer as far up as itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import Prepare, RowKind
from data.tokenizers.base import Tokenizer
from model.distillation import DistillationConfig
from train.objectives.masked_lm import MaskedLM, MaskedLMConfig, masked_logits, masked_nats
from train.objectives.objective import DeviceBatch

_TERMS = ("soft", "masked_lm", "cosine", "hidden", "attention", "embedding")
_EPSILON = 1e-12  # added to squared norms


@dataclass(frozen=True)
class DistillConfig(MaskedLMConfig):
    """What is learned, by the coefficients of its terms; those of DistilBERT by default. Terms with 0 cost nothing.

    Attributes:
        teacher: the run, or the Hugging Face folder, of the teacher.
        start_from_teacher: the student begins with every second (or third, ...) of the teacher's layers.
        soft: the divergence of the student's predictions from the teacher's, both at `temperature`.
        temperature: what logits are divided by; the divergence is multiplied by its square.
        soft_everywhere: predictions are compared at every token, as DistilBERT's were, not only at the chosen ones.
        masked_lm: nats of the chosen tokens.
        cosine: 1 - the cosine of the last hidden states.
        hidden: mean squared difference of each layer's hidden states, summed over layers.
        attention: the same of attention scores, before the softmax; their mean over heads and the keys of each token.
        embedding: the same of what enters the layers.
    """

    teacher: str = ""
    start_from_teacher: bool = False
    soft: float = 5.0
    temperature: float = 2.0
    soft_everywhere: bool = False
    masked_lm: float = 2.0
    cosine: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    embedding: float = 0.0

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that rows of `length` tokens do not allow."""
        super().validate(length)
        if not self.teacher:
            raise ValueError("objective.teacher is empty; pass --objective.teacher RUN, or a Hugging Face folder")
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature={self.temperature} must be more than 0")
        coefficients = {name: getattr(self, name) for name in _TERMS}
        for name, value in coefficients.items():
            if value < 0:
                raise ValueError(f"objective.{name}={value} must be at least 0")
        if not any(coefficients.values()):
            raise ValueError(f"nothing is learned with {', '.join(_TERMS)} all 0; give one of them a coefficient")

    def check(self, model: DistillationConfig) -> None:
        """Raise ValueError, in one sentence, for models that can't be compared in this way."""
        student, teacher = model.student, model.teacher
        if (self.hidden or self.attention) and teacher.num_layers % student.num_layers:
            raise ValueError(
                f"model.student.num_layers={student.num_layers} must divide the teacher's {teacher.num_layers} for "
                "objective.hidden and objective.attention, which compare every second (or third, ...) layer of it"
            )
        if self.attention and teacher.num_heads != student.num_heads:
            raise ValueError(
                f"model.student.num_heads={student.num_heads} must be the teacher's {teacher.num_heads} for "
                "objective.attention, which compares head by head"
            )


class Distill:
    """The means of the student's differences from its teacher."""

    rows: RowKind = "text"
    length_multiple = MaskedLM.length_multiple
    roles = MaskedLM.roles
    definition = (
        "held-out rows, masked by fixed keys; each term is its mean over masked tokens (masked_lm, and soft unless "
        "soft_everywhere) or over all; masked_lm = nats a masked token; loss = sum of coefficient x term"
    )

    def __init__(self, config: DistillConfig):
        self.config = config
        self.coefficients = {name: getattr(config, name) for name in _TERMS if getattr(config, name)}
        self._of_chosen = {"masked_lm"} if config.soft_everywhere else {"masked_lm", "soft"}

    def preparation(self, tokenizer: Tokenizer) -> Prepare:
        """What masks rows as masked language modelling does; raises ValueError without a mask token."""
        return MaskedLM(self.config).preparation(tokenizer)

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of chosen tokens for what compares predictions, and of all tokens for the rest."""
        return {name: count_B.sum() for name, count_B in self._counts(batch).items()}

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Each term's sum over its tokens."""
        return {name: term_B.sum() for name, term_B in self._terms(model, batch, key).items()}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Each term's sum and the number of its tokens, each [B]."""
        counts = {f"{name}_tokens": count_B for name, count_B in self._counts(batch).items()}
        return self._terms(model, batch, None) | counts

    def figures(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | int]:
        """What is reported of summed rows; see `definition`."""
        means = {name: float(sums[name] / sums[f"{name}_tokens"]) for name in self.coefficients}
        return {"loss": sum(c * means[name] for name, c in self.coefficients.items()), **means}

    def _counts(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        return {name: self._counted(name, batch).sum(1, dtype=jnp.int32) for name in self.coefficients}

    def _terms(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Each term's sum over the tokens of each row, [B] float32."""
        wanted, temperature = self.coefficients, self.config.temperature
        names = {"hidden": "hidden", "attention": "attention_scores", "embedding": "embedding"}
        capture = tuple(names[name] for name in wanted if name in names)
        inputs = batch["tokens"], batch["positions"], batch["segments"]
        student, teacher = model.student, jax.lax.stop_gradient(model.teacher)
        student_BLD, ours = student.hidden(*inputs, key=key, capture=capture)
        teacher_BLD, theirs = teacher.hidden(*inputs, capture=capture)
        step = teacher.config.num_layers // student.config.num_layers
        layers = slice(step - 1, None, step)  # the teacher's that are as far up as the student's
        student_BPV = masked_logits(student, student_BLD, batch)

        terms = {}
        with jax.named_scope("loss"):
            if "soft" in wanted and self.config.soft_everywhere:
                terms["soft"] = _divergence(student.logits(student_BLD), teacher.logits(teacher_BLD), temperature)
            elif "soft" in wanted:
                terms["soft"] = _divergence(student_BPV, masked_logits(teacher, teacher_BLD, batch), temperature)
            if "masked_lm" in wanted:
                terms["masked_lm"] = masked_nats(student_BPV, batch)
            if "cosine" in wanted:
                terms["cosine"] = _turn(model.project_hidden(student_BLD), teacher_BLD)
            if "hidden" in wanted:
                terms["hidden"] = _squared(model.project_hidden(ours["hidden"]), theirs["hidden"][layers]).sum(0)
            if "attention" in wanted:
                scores = ours["attention_scores"], theirs["attention_scores"][layers]
                terms["attention"] = _apart(*scores, batch["segments"])
            if "embedding" in wanted:
                terms["embedding"] = _squared(model.project_embedding(ours["embedding"]), theirs["embedding"])
        counted = {name: self._counted(name, batch) for name in terms}
        return {name: jnp.where(counted[name], term, 0).sum(1) for name, term in terms.items()}

    def _counted(self, name: str, batch: DeviceBatch) -> jax.Array:
        """The tokens that a term is a mean over, bool: of the chosen places [B, P], or of all [B, L]."""
        return batch["scored"] if name in self._of_chosen else batch["segments"] > 0


def _divergence(student_BLV: jax.Array, teacher_BLV: jax.Array, temperature: float) -> jax.Array:
    """KL(teacher || student) [B, L], both softened, times temperature^2, by which gradients keep their size."""
    log_q_BLV, log_p_BLV = (
        jax.nn.log_softmax(x_BLV.astype(jnp.float32) / temperature) for x_BLV in (student_BLV, teacher_BLV)
    )
    return temperature**2 * (jnp.exp(log_p_BLV) * (log_p_BLV - log_q_BLV)).sum(-1)


def _turn(x_BLD: jax.Array, y_BLD: jax.Array) -> jax.Array:
    """1 - the cosine of two vectors, [B, L]."""
    x_BLD, y_BLD = x_BLD.astype(jnp.float32), y_BLD.astype(jnp.float32)
    squares_BL = (jnp.square(x_BLD).sum(-1) + _EPSILON) * (jnp.square(y_BLD).sum(-1) + _EPSILON)
    return 1 - (x_BLD * y_BLD).sum(-1) * jax.lax.rsqrt(squares_BL)


def _squared(x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean squared difference of vectors, over the last axis."""
    return jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)).mean(-1)


def _apart(x_NBHLM: jax.Array, y_NBHLM: jax.Array, segments_BL: jax.Array) -> jax.Array:
    """The mean squared difference of scores over heads and the keys that a token sees, summed over layers: [B, L].

    Masked scores are the same in both.
    """
    keys_BL = (segments_BL[:, :, None] == segments_BL[:, None]).sum(-1)
    return jnp.square(x_NBHLM - y_NBHLM).mean(2).sum((0, -1)) / keys_BL
