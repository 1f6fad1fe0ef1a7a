"""Two encoders that are trained as one state: what their configurations have in common.

They read the same rows, and one of them is kept, to be exported and fine-tuned. It stands under its own name,
so that its weights have the names of an encoder alone, with that before them.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from model.config import check_part
from model.encoder import EncoderConfig


@dataclass(frozen=True, kw_only=True)
class EncoderPairConfig:
    """A configuration whose fields are two encoders, with one vocabulary."""

    KEPT: ClassVar[str]  # the field of the encoder that is kept

    @property
    def encoders(self) -> dict[str, EncoderConfig]:
        """Both by name."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @property
    def kept(self) -> EncoderConfig:
        """The encoder that is kept."""
        return self.encoders[self.KEPT]

    @property
    def vocab_size(self) -> int:
        """Number of the tokens that both know."""
        return self.kept.vocab_size

    @property
    def max_length(self) -> int:
        """Tokens that both can read."""
        return min(encoder.max_length for encoder in self.encoders.values())

    @property
    def positions(self) -> Literal["learned"]:
        """What encoders have."""
        return "learned"

    def resolved(self) -> Self:
        """The same configuration with nothing left to follow from other fields."""
        return dataclasses.replace(self, **{name: encoder.resolved() for name, encoder in self.encoders.items()})

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no such pair can have."""
        for name, encoder in self.encoders.items():
            check_part(name, encoder)

    def _must_agree(self, fields: tuple[str, ...], reason: str) -> None:
        (one, its), (other, theirs) = self.encoders.items()
        for field in fields:
            if getattr(its, field) != (value := getattr(theirs, field)):
                name = "embedding_dim" if field == "embedding_size" else field
                raise ValueError(
                    f"model.{one}.{name}={getattr(its, field)} must be {value}, that of model.{other}, since {reason}"
                )
