"""Masks filled by an encoder: the tokens that fit best in their places (Devlin et al. 2018)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data.pairs import source_batches
from data.tokenizers.base import Tokenizer
from data.tokenizers.marks import encode_marked
from model.encoder import EncoderConfig
from model.parameters import Params
from model.sharding import axis_size
from train.mesh import place_rows, replicated
from train.state import Blueprint


@dataclass(frozen=True)
class Filled:
    """A text whose masks are filled.

    Attributes:
        text: the text, with the most probable token in each mask's place.
        tokens: the tokens that fit best, most probable first, int32 [masks, choices].
        log_probabilities: theirs, float32 [masks, choices].
    """

    text: str
    tokens: np.ndarray
    log_probabilities: np.ndarray


class Filler:
    """An encoder that predicts tokens, ready to fill masks with weights that lie on a mesh.

    `precision` is the compute dtype, `choices` the number of tokens that are found for each mask. Raises ValueError
    where the model predicts no tokens, or the tokenizer has no mask.
    """

    def __init__(
        self,
        plan: Blueprint,
        params: Params,
        tokenizer: Tokenizer,
        mesh: Mesh,
        precision: str = "float32",
        *,
        choices: int = 5,
    ):
        config: EncoderConfig = plan.config
        if not config.predicts_tokens:
            raise ValueError(
                f"this encoder's head is {config.head}, which predicts no tokens; an encoder reads text, and fills "
                "masks only with the head masked_lm or pretraining"
            )
        self.config, self.tokenizer, self.mesh, self._params = config, tokenizer, mesh, params
        self._mask_id, dtype = tokenizer.special("mask"), jnp.dtype(precision)

        def choose(params: Params, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
            model = plan.model(params, dtype)
            hidden, _ = model.hidden(tokens, segments_BL=segments)
            log_p = jax.nn.log_softmax(model.logits(hidden).astype(jnp.float32))
            return jax.lax.top_k(log_p, min(choices, config.vocab_size))

        self._choose = jax.jit(choose, out_shardings=replicated(mesh))

    def fill(self, prompts: Sequence[str]) -> list[Filled]:
        """Fills all masks of each prompt, given the text around them and the other masks.

        Raises ValueError for a prompt without a mask, or with more tokens than the model reads.
        """
        texts = [self._read(prompt) for prompt in prompts]
        replicas = axis_size(self.mesh, "act_batch")
        (batch,) = source_batches(texts, -(-len(texts) // replicas) * replicas, self.config.max_length)
        placed = (place_rows(self.mesh, x) for x in (batch.tokens, batch.segments))
        with jax.set_mesh(self.mesh):
            log_p, tokens = (np.asarray(x) for x in self._choose(self._params, *placed))
        filled = []
        for row, text in zip(np.argsort(batch.numbers), texts, strict=True):
            places = np.flatnonzero(text == self._mask_id)
            text[places] = tokens[row, places, 0]
            filled.append(Filled(self.tokenizer.decode(text), tokens[row, places], log_p[row, places]))
        return filled

    def _read(self, prompt: str) -> np.ndarray:
        """What the model reads of a prompt: with the start token, and the separator where there is one, as BERT."""
        tokens = encode_marked(self.tokenizer, prompt)
        if self._mask_id not in tokens:
            raise ValueError(
                f"the prompt {prompt!r} has no mask, and an encoder reads text and continues none; write [MASK] where "
                "a token is to be filled in"
            )
        end = [self.tokenizer.specials["separator"]] if "separator" in self.tokenizer.specials else []
        return np.concatenate([[self.tokenizer.special("start")], tokens, end]).astype(np.int32)
