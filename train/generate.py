"""Text from a model: prompts continued token by token, shown as it comes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from data.tokenizers.base import Tokenizer
from model.decode import Sampling, extend, start, unstack
from model.decoder import DecoderConfig
from model.parameters import Params, merge
from model.sharding import axis_size
from train.console import Console
from train.load import load_run
from train.mesh import MeshConfig, batch_sharding
from train.state import Blueprint

_CHUNK = 16  # tokens a call of the compiled decoder: few enough to stream, many enough to keep Python out of the way


@dataclass(frozen=True)
class Arguments:
    """Continues prompts with a trained model.

    Attributes:
        run: RUN (its newest checkpoint), RUN/checkpoints/STEP or RUN@best.
        prompt: one or more texts to continue.
        max_tokens: the most tokens to write; by default 200, or what the model's length leaves.
        temperature: 0 takes the most probable token each time.
        top_k: choose among the k most probable tokens (0: all).
        top_p: choose among the fewest tokens whose probabilities reach p.
        stop: texts that end a continuation, besides the model's end token.
        seed: the same seed writes the same text.
        show_probabilities: show how probable each token was.
        precision: compute dtype.
        mesh: where the model lies.
    """

    run: tyro.conf.Positional[str]
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT")] = ("",)
    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    show_probabilities: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig = MeshConfig()


@dataclass
class Continuation:
    """What was written after one prompt."""

    prompt: str
    text: str
    tokens: list[int]
    log_probabilities: list[float]


def main(arguments: Arguments, console: Console) -> list[dict[str, Any]]:
    """The `generate` command."""
    run = load_run(arguments.run, arguments.mesh, console.say)
    if not isinstance(run.config.model, DecoderConfig):
        raise ValueError(f"{run.directory} holds an encoder, which reads text and writes none; name a decoder's run")
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    writer = Writer(run.plan, run.params, run.tokenizer, run.mesh, arguments.precision)
    streams = len(arguments.prompt) == 1 and not arguments.show_probabilities
    if streams:
        console.write(arguments.prompt[0])
    continuations: list[Continuation] = []
    for new_text, continuations_so_far in writer.write(
        arguments.prompt, arguments.max_tokens, sampling, arguments.seed, arguments.stop
    ):
        continuations = continuations_so_far
        if streams:
            console.write(new_text)
    if streams:
        console.write("\n")
    else:
        for number, continuation in enumerate(continuations):
            if number:
                console.say("")
            if arguments.show_probabilities:
                console.probabilities(
                    continuation.prompt,
                    [run.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in continuation.tokens],
                    np.exp(continuation.log_probabilities).tolist(),
                )
            else:
                console.say(continuation.prompt + continuation.text)
    return [vars(continuation) for continuation in continuations]


def room_after(prompts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> int:
    """How many tokens a model of `max_length` can write after each of the prompts; raises ValueError where none."""
    longest = 1 + max(len(tokenizer.encode(prompt)) for prompt in prompts)  # the start token included
    if longest > max_length:
        raise ValueError(f"the prompt has {longest} tokens, more than the model's max_length={max_length}; shorten it")
    return max_length - longest + 1  # the last token drawn is not read again


class Writer:
    """A model ready to write: its layers laid out one by one, once for all prompts."""

    def __init__(self, plan: Blueprint, params: Params, tokenizer: Tokenizer, mesh: Mesh, precision: str = "float32"):
        self.config, self.tokenizer, self.mesh = plan.config, tokenizer, mesh
        dtype = jnp.dtype(precision)
        with jax.set_mesh(mesh):
            self._model, self._layers = jax.jit(
                lambda params: unstack(merge(plan.skeleton, {n: p.astype(dtype) for n, p in params.items()}))
            )(params)

    def write(
        self, prompts: Sequence[str], max_tokens: int | None, sampling: Sampling, seed: int, stop: Sequence[str] = ()
    ) -> Iterator[tuple[str, list[Continuation]]]:
        """Yields, as it grows, the first prompt's new text and all continuations so far.

        A text ends before a `stop`, or at the end token.
        """
        sampling.validate()
        if "" in stop:
            raise ValueError("a stop text is empty, and every text ends with it; give --stop TEXT")
        if not prompts:
            raise ValueError("there is no prompt; give --prompt TEXT, which may be empty")
        tokens = [
            np.append(self.tokenizer.start_id, self.tokenizer.encode(prompt)).astype(np.int32) for prompt in prompts
        ]
        room = room_after(prompts, self.tokenizer, self.config.max_length)
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
        for drawn, log_p in self._draw(tokens, wanted, sampling, seed):
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

        def place(x: np.ndarray) -> jax.Array:
            return jax.device_put(x, batch_sharding(self.mesh, x.shape))

        stop = jnp.array([self.tokenizer.end_id], jnp.int32)
        with jax.set_mesh(self.mesh):
            decoding = start(
                self._model, self._layers, place(batch), place(lengths), cache_length=-(-(longest + wanted) // 64) * 64
            )
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
