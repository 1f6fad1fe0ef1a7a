"""Text from a model: prompts continued token by token, shown as it comes; sources translated; masks filled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from data.tokenizers.base import Tokenizer
from data.tokenizers.marks import mentions_mask
from model.beam import Beam
from model.decode import Decoding, Sampling, extend, start, start_from_source, unstack
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.parameters import Params
from model.recurrent import RecurrentConfig
from model.sharding import axis_size
from model.structures import kept_part
from train.console import Console
from train.fill import Filler
from train.load import load_run
from train.mesh import MeshConfig, place_rows
from train.objectives.denoising import DenoisingConfig
from train.options import refuse_given
from train.state import Blueprint, blueprint
from train.translate import Translator, decoder_start_id, encode_source

# The options that have an effect only in some ways of writing.
_DRAWING = ("temperature", "top_k", "top_p", "stop", "seed")
_SEARCHING = ("num_beams", "length_penalty")
_CHUNK = 16  # tokens a call of the compiled decoder: few enough to stream, many enough to keep Python out of the way
_TEMPERATURE = 0.8  # at which decoders draw where none is given


@dataclass(frozen=True)
class Arguments:
    """Continues prompts with a decoder, translates them with an encoder-decoder, or fills their masks with an encoder.

    Attributes:
        run: RUN (its newest checkpoint), RUN/checkpoints/STEP or RUN@best.
        prompt: one or more texts; of encoders, with [MASK] where a token is to be filled in.
        max_tokens: the most tokens to write; by default 200, 50 more than its source of a translation, or what the
            model's length leaves.
        temperature: 0 takes the most probable token each time. By default decoders draw at 0.8, and encoder-decoders
            do not draw but search with beams.
        top_k: choose among the k most probable tokens (0: all).
        top_p: choose among the fewest tokens whose probabilities reach p.
        stop: texts that end what is drawn, besides the model's end token.
        seed: the same seed writes the same text.
        num_beams: hypotheses of a translation that are kept; 1 is greedy.
        length_penalty: with more of it, longer translations win (Wu et al. 2016); 0 for none.
        show_probabilities: show how probable each token was; of a mask, the few that fit best.
        precision: compute dtype.
        mesh: where the model lies.
    """

    run: tyro.conf.Positional[str]
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT")] = ("",)
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    num_beams: int = Beam.num_beams
    length_penalty: float = Beam.length_penalty
    show_probabilities: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig = MeshConfig()


@dataclass
class Continuation:
    """What was written after a prompt, or made of it."""

    prompt: str
    text: str
    tokens: list[int]
    log_probabilities: list[float]


def main(arguments: Arguments, console: Console) -> list[dict[str, Any]]:
    """The `generate` command."""
    run = load_run(arguments.run, arguments.mesh, console.say)
    config, kept = kept_part(run.config.model, run.params)
    if not isinstance(config, DecoderConfig | EncoderDecoderConfig | RecurrentConfig | EncoderConfig):
        raise ValueError(
            f"{run.directory} holds a model that reads images, and a prompt is text; name the run of a decoder, an "
            "encoder-decoder or an encoder"
        )
    if not arguments.prompt:
        raise ValueError("there is no prompt; give --prompt TEXT, which may be empty")
    model = (blueprint(config), dict(kept), run.tokenizer, run.mesh, arguments.precision)
    begins = isinstance(run.config.objective, DenoisingConfig)
    match config:
        case EncoderConfig():
            written = _fill(Filler(*model), arguments, console)
        case EncoderDecoderConfig() | RecurrentConfig() if arguments.temperature is None:
            written = _translate(Translator(*model), begins, arguments, console)
        case RecurrentConfig():
            raise ValueError("a recurrent model only searches, and draws no tokens; leave --temperature out")
        case _:
            written = _draw(Writer(*model, sources_begin=begins), arguments, console)
    return [vars(continuation) for continuation in written]


def _draw(writer: "Writer", arguments: Arguments, console: Console) -> list[Continuation]:
    """Shows continuations of prompts behind them, or translations that are drawn; a single one as it comes."""
    refuse_given(arguments, _SEARCHING, "says how a translation is searched, and here tokens are drawn")
    sampling = Sampling(
        _TEMPERATURE if arguments.temperature is None else arguments.temperature, arguments.top_k, arguments.top_p
    )
    streams = len(arguments.prompt) == 1 and not arguments.show_probabilities
    unwritten = arguments.prompt[0] if writer.continues else ""  # until it is known that the model can go on from it
    continuations: list[Continuation] = []
    for new_text, continuations_so_far in writer.write(
        arguments.prompt, arguments.max_tokens, sampling, arguments.seed, arguments.stop
    ):
        continuations = continuations_so_far
        if streams:
            console.write(unwritten + new_text)
            unwritten = ""
    if streams:
        console.write("\n")
    else:
        _show(continuations, writer.tokenizer, arguments, console, behind_prompts=writer.continues)
    return continuations


def _translate(translator: Translator, begins: bool, arguments: Arguments, console: Console) -> list[Continuation]:
    """Shows the translation of each prompt."""
    refuse_given(arguments, _DRAWING, "says how tokens are drawn, and without --temperature a translation is searched")
    sources = [
        encode_source(prompt, translator.tokenizer, translator.longest, begins=begins) for prompt in arguments.prompt
    ]
    beam = Beam(arguments.num_beams, arguments.length_penalty)
    translations = translator.translate(sources, beam, batch_size=len(sources), max_tokens=arguments.max_tokens)
    log_probabilities = translator.log_probabilities(sources, translations)
    continuations = [
        Continuation(prompt, translation.text, translation.tokens, log_p)
        for prompt, translation, log_p in zip(arguments.prompt, translations, log_probabilities, strict=True)
    ]
    _show(continuations, translator.tokenizer, arguments, console)
    return continuations


def _fill(filler: Filler, arguments: Arguments, console: Console) -> list[Continuation]:
    """Shows each prompt with its masks filled, or what fits best in each mask."""
    options = ("max_tokens", *_DRAWING, *_SEARCHING)
    refuse_given(arguments, options, "says how text is written, and an encoder writes none but fills masks")
    continuations = []
    for prompt, filled in zip(arguments.prompt, filler.fill(arguments.prompt), strict=True):
        if arguments.show_probabilities:
            rows = [
                (number, repr(filler.tokenizer.decode([token])), f"{np.exp(log_p):8.2%}")
                for number, fitting in enumerate(zip(filled.tokens, filled.log_probabilities, strict=True), start=1)
                for token, log_p in zip(*fitting, strict=True)
            ]
            console.table(repr(prompt), ("mask", "token", "probability"), rows)
        else:
            console.say(filled.text)
        best = filled.tokens[:, 0].tolist(), filled.log_probabilities[:, 0].tolist()
        continuations.append(Continuation(prompt, filled.text, *best))
    return continuations


def _show(
    continuations: Sequence[Continuation],
    tokenizer: Tokenizer,
    arguments: Arguments,
    console: Console,
    behind_prompts: bool = False,
) -> None:
    """Shows several texts, each token by token if that is asked for."""
    for number, continuation in enumerate(continuations):
        if number and (behind_prompts or arguments.show_probabilities):
            console.say("")
        if arguments.show_probabilities:
            pieces = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in continuation.tokens]
            console.probabilities(continuation.prompt, pieces, np.exp(continuation.log_probabilities).tolist())
        else:
            console.say(continuation.prompt * behind_prompts + continuation.text)


def read_prompt(prompt: str, tokenizer: Tokenizer, max_length: int) -> np.ndarray:
    """What a decoder reads of a prompt, its start token included; raises ValueError where it can't go on from that."""
    if mentions_mask(prompt):
        raise ValueError(
            f"the prompt {prompt!r} has a mask, and a decoder continues text and fills none; name an encoder's run, or "
            "leave the mask out"
        )
    tokens = np.append(tokenizer.special("start"), tokenizer.encode(prompt)).astype(np.int32)
    if len(tokens) > max_length:
        raise ValueError(
            f"the prompt has {len(tokens)} tokens, more than the model's max_length={max_length}; shorten it"
        )
    return tokens


def room_after(longest: int, max_length: int) -> int:
    """How many tokens a decoder can write after so many: one more than it can read, for the last is not read again."""
    return max_length - longest + 1


@partial(jax.jit, static_argnames=("plan", "precision"))
def _laid_out(plan: Blueprint, params: Params, precision: str) -> tuple[Any, tuple[Any, ...]]:
    """The model in the dtype that it computes in, and its layers one by one."""
    return unstack(plan.model(params, jnp.dtype(precision)))


class Writer:
    """A model ready to write: its layers laid out one by one, once for all prompts.

    A decoder continues prompts. An encoder-decoder reads them, after the start token if `sources_begin`, and writes
    what it makes of them.
    """

    def __init__(
        self,
        plan: Blueprint,
        params: Params,
        tokenizer: Tokenizer,
        mesh: Mesh,
        precision: str = "float32",
        *,
        sources_begin: bool = False,
    ):
        self.config, self.tokenizer, self.mesh = plan.config, tokenizer, mesh
        self._sources_begin = sources_begin
        self.continues = isinstance(plan.config, DecoderConfig)
        with jax.set_mesh(mesh):
            self._model, self._layers = _laid_out(plan, params, precision)

    def write(
        self, prompts: Sequence[str], max_tokens: int | None, sampling: Sampling, seed: int, stop: Sequence[str] = ()
    ) -> Iterator[tuple[str, list[Continuation]]]:
        """Yields, as it grows, the first prompt's new text and all continuations so far.

        A text ends before a `stop`, or at the end token.
        """
        sampling.validate()
        if "" in stop:
            raise ValueError("a stop text is empty, and every text ends with it; give --stop TEXT")
        read = [self._read(prompt) for prompt in prompts]
        longest = self.config.max_length
        room = room_after(max(map(len, read)), longest) if self.continues else longest
        wanted = min(200, room) if max_tokens is None else max_tokens
        if not 1 <= wanted <= room:
            raise ValueError(
                f"max_tokens={wanted} must be between 1 and {room}, "
                f"what the model's max_length={self.config.max_length} leaves; try {room}"
            )

        continuations = [Continuation(prompt, "", [], []) for prompt in prompts]
        streams = [self.tokenizer.stream() for _ in prompts]
        shown = ""
        done = [False] * len(prompts)
        for drawn, log_p in self._draw(read, wanted, sampling, seed):
            for number, continuation in enumerate(continuations):
                if done[number]:
                    continue
                for token, log_probability in zip(drawn[number].tolist(), log_p[number].tolist(), strict=True):
                    done[number] = done[number] or token in (-1, self.tokenizer.end_id)
                    if done[number]:
                        break
                    continuation.tokens.append(token)
                    continuation.log_probabilities.append(log_probability)
                    continuation.text += streams[number].feed([token])
                    if ends := [at for at in map(continuation.text.find, stop) if at >= 0]:
                        continuation.text, done[number] = continuation.text[: min(ends)], True
                        streams[number] = self.tokenizer.stream()  # forgets what came behind the stop
                        break
            text = continuations[0].text
            # What may be the beginning of a stop is held back until it is decided.
            begun = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
            new = text[len(shown) : len(text) - (0 if done[0] else max(begun, default=0))]
            shown += new
            yield new, continuations
            if all(done):
                break
        for continuation, stream in zip(continuations, streams, strict=True):
            continuation.text += stream.finish()
        yield continuations[0].text[len(shown) :], continuations

    def _read(self, prompt: str) -> np.ndarray:
        """What the model reads of a prompt."""
        if self.continues:
            return read_prompt(prompt, self.tokenizer, self.config.max_length)
        return encode_source(prompt, self.tokenizer, self.config.max_length, begins=self._sources_begin)

    def _draw(
        self, prompts: list[np.ndarray], wanted: int, sampling: Sampling, seed: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and log-probabilities, [prompts, some], until `wanted` are drawn or all rows have stopped."""
        rows = -(-len(prompts) // axis_size(self.mesh, "act_batch")) * axis_size(self.mesh, "act_batch")
        # Few distinct shapes, so that few are compiled: prompts padded to powers of two, caches to multiples of 64.
        longest = max(map(len, prompts))
        length = min(max(16, 1 << (longest - 1).bit_length()), self.config.max_length)
        length += -length % axis_size(self.mesh, "act_length")
        batch = np.full((rows, length), self.tokenizer.end_id, np.int32)
        for row, prompt in enumerate(prompts):
            batch[row, : len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts] + [1] * (rows - len(prompts)), np.int32)

        stop = jnp.array([self.tokenizer.end_id], jnp.int32)
        with jax.set_mesh(self.mesh):
            decoding = self._begin(batch, lengths, -(-((longest if self.continues else 1) + wanted) // 64) * 64)
            for begin in range(0, wanted, _CHUNK):
                decoding, drawn, log_p = extend(
                    self._model,
                    self._layers,
                    decoding,
                    jax.random.key(seed),
                    stop,
                    num_tokens=_CHUNK,
                    sampling=sampling,
                )
                keep = min(_CHUNK, wanted - begin)
                drawn, log_p = np.asarray(drawn)[:, :keep], np.asarray(log_p)[:, :keep]
                yield drawn, log_p
                if (drawn[: len(prompts), -1] < 0).all():
                    return

    def _begin(self, batch: np.ndarray, lengths: np.ndarray, cache_length: int) -> Decoding:
        """Reads prompts, [rows, length], of which each row has `lengths` tokens."""
        place = partial(place_rows, self.mesh)
        if self.continues:
            return start(self._model, self._layers, place(batch), place(lengths), cache_length=cache_length)
        segments = (np.arange(batch.shape[1]) < lengths[:, None]).astype(np.int32)
        first = np.full((len(batch), 1), decoder_start_id(self.config, self.tokenizer), np.int32)
        sources, opened = (place(batch), place(segments)), (place(first), place(np.ones_like(lengths)))
        return start_from_source(self._model, self._layers, *sources, *opened, cache_length=cache_length)
