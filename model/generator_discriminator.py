"""ELECTRA (Clark et al. 2020): a generator fills masks, and a discriminator tells which tokens it has replaced.

Both are encoders. What stands before their layers, the tables of tokens, positions and types and their norm, is the
discriminator's, and the generator uses it too, so that a narrow one projects it to its own width. After training the
discriminator is kept.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from model import encoder
from model.encoder import Encoder, EncoderConfig
from model.encoder_pair import EncoderPairConfig
from model.stack import norm_parameters

_SHARED = ("embedding", "positions", "types", "embedding_norm")  # the parts of an encoder that both have, once
_ALIKE = (
    *("vocab_size", "vocab_multiple", "max_length", "embedding_size", "num_types", "position_offset"),
    *("embedding_norm", "norm", "norm_bias", "norm_epsilon"),
)


@dataclass(frozen=True, kw_only=True)
class GeneratorDiscriminatorConfig(EncoderPairConfig):
    """A generator, with a head of masked language modelling, and a discriminator, with one for replaced tokens."""

    KEPT: ClassVar[str] = "discriminator"

    generator: EncoderConfig
    discriminator: EncoderConfig

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no such pair can have."""
        super().validate()
        for name, head in (("generator", "masked_lm"), ("discriminator", "replaced_token")):
            if (found := self.encoders[name].head) != head:
                raise ValueError(f"model.{name}.head={found} must be {head}; pass --model.{name}.head {head}")
        self._must_agree(_ALIKE, "they share their embeddings")


class GeneratorDiscriminator(nnx.Module):
    """Both encoders; `generator` lacks what it shares, and `whole_generator` has it."""

    def __init__(self, config: GeneratorDiscriminatorConfig, rngs: nnx.Rngs):
        self.config = config
        self.discriminator = Encoder(config.discriminator, rngs)
        self.generator = Encoder(config.generator, rngs)
        for name in self._shared():
            delattr(self.generator, name)

    def whole_generator(self) -> Encoder:
        """The generator with the discriminator's embeddings."""
        whole = jax.tree.map(lambda leaf: leaf, self.generator)  # another module with the same weights
        for name, part in self._shared().items():
            setattr(whole, name, part)
        return whole

    def _shared(self) -> dict[str, object]:
        parts = vars(self.discriminator)
        return {name: parts[name] for name in _SHARED if name in parts}

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """The generator's "logits" [B, L, V] and the discriminator's "class_logits" [B, L, 1], of the same tokens."""
        inputs = tokens_BL, positions_BL, segments_BL, types_BL
        return self.whole_generator()(*inputs) | self.discriminator(*inputs)

    @staticmethod
    def example(config: GeneratorDiscriminatorConfig) -> dict[str, np.ndarray]:
        """Fixed inputs by which two models of this configuration are compared."""
        return Encoder.example(config.discriminator)


def count_parameters(config: GeneratorDiscriminatorConfig) -> int:
    """Number of trainable parameters: what both share once, the padding of the vocabulary not at all."""
    one, E = config.discriminator, config.discriminator.embedding_size
    shared = E * (one.vocab_size + one.max_length + one.position_offset + one.num_types)
    shared += norm_parameters(one, E) if one.embedding_norm else 0
    return sum(encoder.count_parameters(part) for part in config.encoders.values()) - shared
