"""Special tokens by what they are for, as the files of a Hugging Face folder name them."""

import json
from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

# For each role: how tokenizer_config.json calls it, and the usual names, which count where no file says anything.
ROLES = {
    "start": ("bos_token", ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>")),
    "end": ("eos_token", ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>")),
    "pad": ("pad_token", ("<pad>", "[PAD]", "<|pad|>")),
    "mask": ("mask_token", ("<mask>", "[MASK]")),
    "separator": ("sep_token", ("[SEP]",)),
    "class": ("cls_token", ("[CLS]",)),
    "unknown": ("unk_token", ("<unk>", "[UNK]")),
}
_SENTINEL = "sentinel_"


def sentinel_role(number: int) -> str:
    """The role of the token that stands for a span that is left out of a text (T5), the spans numbered from 0."""
    return f"{_SENTINEL}{number}"


def usual_name(role: str) -> str:
    """What a token for a role is called where it is made here; sentinels as in T5, "<extra_id_0>"."""
    return f"<extra_id_{role.removeprefix(_SENTINEL)}>" if role.startswith(_SENTINEL) else ROLES[role][1][0]


def find_specials(
    files: Mapping[str, bytes], ids: Mapping[str, int], known: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The ids of the special tokens by role.

    A document starts with the class token where there is no start token (as BERT's do), and ends with the separator
    where there is no end token; where only one of the two can be found, it does both.

    Args:
        files: those of the folder, of which tokenizer_config.json and special_tokens_map.json name tokens.
        ids: of all tokens that may be special, by their text.
        known: those that are known without the files.

    Raises:
        ValueError: one of those files is damaged.
    """
    config = json_object(files, "special_tokens_map.json") | json_object(files, "tokenizer_config.json")
    found = dict(known or {})
    for role, (key, usual) in ROLES.items():
        names = [token_text(config[key])] if key in config else usual
        place = next((ids[name] for name in names if name in ids), None)
        if place is not None and role not in found:
            found[role] = place
    sentinels = takewhile(lambda role: usual_name(role) in ids, map(sentinel_role, count()))
    found |= {role: ids[usual_name(role)] for role in sentinels}
    start = found.get("start", found.get("class"))
    end = found.get("end", found.get("separator"))
    start, end = (end if start is None else start), (start if end is None else end)
    return found if start is None or end is None else {"start": start, "end": end} | found


def token_text(value: Any) -> str:
    """The text of a token that a file gives as a string or as an object with its "content"; "" for neither."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is damaged: it does not hold a JSON object; copy it anew from where it was made")
    return value
