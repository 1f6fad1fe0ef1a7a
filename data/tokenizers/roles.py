"""Special tokens by what they are for, as the files of a Hugging Face folder name them."""

import json
from collections.abc import Mapping
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
