"""The text that a run writes now and then, so that a person can read what was learned: kept in RUN/samples.jsonl."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from data.tokenizers.base import Tokenizer
from model.decode import Sampling
from model.parameters import Params
from train.config import SampleConfig
from train.generate import Writer, read_prompt, room_after
from train.memory import explained_beside_steps
from train.run_directory import RunDirectory, count_of, first_line, read_rows, write_rows
from train.state import Blueprint


class Samples:
    """What is written, always of the same prompt and draws, so that only the weights make a difference.

    Raises ValueError for what a decoder could not write.

    Args:
        config: what is asked for.
        plan: a decoder.
        tokenizer: its tokenizer.
        mesh: where it lies.
        run: where the text is kept.
        seed: of the draws.
        report: is told, in a sentence, of a text that could not be kept; it is no reason to end a run.
    """

    def __init__(
        self,
        config: SampleConfig,
        plan: Blueprint,
        tokenizer: Tokenizer,
        mesh: Mesh,
        run: RunDirectory,
        seed: int,
        report: Callable[[str], None],
    ):
        self._config, self._plan, self._tokenizer, self._mesh = config, plan, tokenizer, mesh
        self._run, self._seed, self._report = run, seed, report
        self._sampling = Sampling(config.temperature)
        self._sampling.validate()
        length = plan.config.max_length
        self._tokens = min(config.tokens, room_after(len(read_prompt(config.prompt, tokenizer, length)), length))

    def due(self, step: int) -> bool:
        """Whether a text is asked for after this step, besides the one at the end."""
        return self._config.every > 0 and step % self._config.every == 0

    def write(self, step: int, params: Params, show: Callable[[str], None] = lambda text: None) -> None:
        """Writes a text with the weights of `step`, and keeps it; `show` gets it piece by piece, the prompt first.

        What `show` raises breaks it off. All processes of a run write, and the first keeps it.
        """
        prompt, text = self._config.prompt, ""
        show(prompt)
        with explained_beside_steps("writing a sample", "--sample.every 0 and --sample.tokens 0 leave samples out"):
            writer = Writer(self._plan, params, self._tokenizer, self._mesh)
            for piece, _ in writer.write([prompt], self._tokens, self._sampling, self._seed):
                show(piece)
                text += piece
        if jax.process_index() == 0:
            self._keep({"step": step, "prompt": prompt, "text": text})

    def _keep(self, sample: dict[str, Any]) -> None:
        path = self._run.samples
        try:
            # A stretch that was lost is made again, and its texts with it.
            write_rows(path, [*(row for row in read_rows(path) if count_of(row, "step") < sample["step"]), sample])
        except OSError as error:
            self._report(f"the sample of step {sample['step']} could not be kept in {path} ({first_line(error)})")
