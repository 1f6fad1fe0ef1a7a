"""Reading a config.json of Hugging Face: every key is read, known to change nothing, or refused by name."""

import json
import math
from typing import Any

REQUIRED: Any = object()  # the default of a key that must be there

# Keys that any architecture may have, and that change nothing of what a decoder computes from its tokens.
INERT = frozenset(
    [
        *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
        *("name_or_path", "use_cache", "gradient_checkpointing", "chunk_size_feed_forward", "pretraining_tp"),
        *("output_attentions", "output_hidden_states", "output_past", "return_dict", "use_return_dict", "torchscript"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
        *("tokenizer_class", "prefix", "id2label", "label2id", "num_labels", "_num_labels", "problem_type"),
        *("finetuning_task", "task_specific_params", "use_bfloat16", "tf_legacy_loss", "is_decoder"),
        *("_attn_implementation_autoset", "remove_invalid_values", "return_dict_in_generate", "output_scores"),
        # Old versions wrote the settings of text generation here too.
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "suppress_tokens"),
        "begin_suppress_tokens",
    ]
)


class Keys:
    """The keys of a config.json: each is read by name and type, and `finish` refuses those that nobody read.

    A key that is null is a key that is absent. Every error is a ValueError of one sentence.
    """

    def __init__(self, values: dict[str, Any], where: str = "config.json"):
        self._values = {key: value for key, value in values.items() if value is not None}
        self._where = where
        self._read: set[str] = set()

    def integer(self, key: str, default: Any = REQUIRED, at_least: int = 1) -> Any:
        """A whole number from `at_least` to a billion."""
        value = self._get(key, default)
        if key in self._values and (type(value) is not int or not at_least <= value <= 10**9):
            raise self._wrong(key, f"must be a whole number from {at_least} to 1,000,000,000")
        return value

    def multiple(self, key: str, divisor: str, default: Any = REQUIRED) -> tuple[int, int]:
        """Two whole numbers of which the first is a multiple of the second; `default` is the second's."""
        value, by = self.integer(key), self.integer(divisor, default)
        if value % by:
            raise ValueError(f"{self._where}: {key}={value} must be a multiple of {divisor}={by}")
        return value, by

    def number(self, key: str, default: Any = REQUIRED, at_least: float = 0.0) -> Any:
        """A finite number of at least `at_least`, as a float."""
        value = self._get(key, default)
        if key not in self._values:
            return value
        if type(value) not in (int, float) or not at_least <= value < math.inf:
            raise self._wrong(key, f"must be a finite number of at least {at_least:g}")
        return float(value)

    def text(self, key: str) -> str:
        """A string."""
        value = self._get(key, REQUIRED)
        if not isinstance(value, str):
            raise self._wrong(key, "must be a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "must be true or false")
        return value

    def choice(self, key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """One of the values that this program computes; any other is refused."""
        value = self._get(key, default)
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise self._wrong(key, f"is not supported, only {' or '.join(map(json.dumps, allowed))}")
        return value

    def __len__(self) -> int:
        return len(self._values)

    def inside(self, key: str) -> "Keys | None":
        """The keys of the object `key`, or None where there is none."""
        value = self._get(key, None)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "must be an object")
        return Keys(value, f"{self._where}: {key}") if value else None

    def finish(self, inert: frozenset[str] = frozenset()) -> None:
        """Refuse the first key that was not read and is not in `inert`."""
        for key in self._values:
            if key in ("auto_map", "trust_remote_code"):
                raise self._wrong(key, "asks for code from the folder, and none is ever run; remove the key")
            if key not in self._read and key not in inert:
                raise self._wrong(
                    key, "is not known, and might change what the model computes; remove the key if it does not"
                )

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._values.get(key, default)
        if value is REQUIRED:
            raise ValueError(f"{self._where} has no {key}, which its architecture needs")
        return value

    def _wrong(self, key: str, what: str) -> ValueError:
        shown = json.dumps(self._values[key])
        return ValueError(f"{self._where}: {key}={shown if len(shown) <= 80 else shown[:77] + '...'} {what}")
