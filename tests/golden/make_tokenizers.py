"""Writes tokenizers.json beside it: small tokenizers of the published kinds, and what transformers makes of texts.

python tests/golden/make_tokenizers.py (needs the extra `parity`); made with transformers 5.23.0 and tokenizers 0.23.3,
whose training makes other tokenizers of the same kinds every time.
"""

import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

GOLDEN = Path(__file__).resolve().parent

TEXTS = [
    *runpy.run_path(str(GOLDEN.parent / "data" / "conftest.py"))["TRICKY"],
    "</s> [MASK] <s> <|endoftext|> [UNK] <0x41> <mask> <unk><pad> <|end_of_text|>",
    "I don't think we'll see 1234567 'quoted' words, e.g. U.S. prices at $5.00 (or 3,50 €)!",
    "ΑΣ ΟΔΟΣ İstanbul ǅ x\u0301\u0323 ａｂｃ① 中文字符。",
    "오늘은 날씨가 정말 좋네요. 영화가 재미있었어요!",
    "  \t mixed \r\n\t white\u00a0space \n\n ",
]
LESSONS = [
    "The old man looked at the river, and the river looked back at the old man.\n",
    "I don't know what we'll see there; she didn't say, and they weren't asking.\n",
    "In 1999 there were 25 houses, in 2024 there are 1,250 of them (or so they say)!\n",
    "오늘은 날씨가 정말 좋습니다. 영화가 정말 재미있었습니다.\n",
    "def lookup(table, key):\n    return table[key]\n\n\n",
    "naïve café, señor; Straße und Häuser\n",
    '<a href="/s">a link</a> and <s>a struck word</s>\n',
] * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def gpt2() -> dict[str, str]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train(tokenizer, trainers.BpeTrainer(vocab_size=400, initial_alphabet=ALPHABET, special_tokens=["<|endoftext|>"]))
    model = json.loads(tokenizer.to_str())["model"]
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    return {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + merges,
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer"}),
    }


def bert(**config: Any) -> dict[str, str]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=config.get("do_lower_case", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=260, limit_alphabet=80, special_tokens=marks))
    vocabulary = tokenizer.get_vocab()
    return {
        "vocab.txt": "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "BertTokenizer", **config}),
    }


def llama3() -> dict[str, str]:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=360, initial_alphabet=ALPHABET))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.add_tokens(["old man"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="$A $B", special_tokens=[("<|begin_of_text|>", 360)]
    )
    return _files(
        tokenizer, bos_token="<|begin_of_text|>", eos_token={"__type": "AddedToken", "content": "<|end_of_text|>"}
    )


def llama2() -> dict[str, str]:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    marks = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=420, limit_alphabet=60, special_tokens=marks + BYTES)
    _train(tokenizer, trainer, [word for lesson in LESSONS for word in lesson.replace(" ", " \u2581").split(" ")])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    content["truncation"] = {"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
    return _files(Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def t5() -> dict[str, str]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    marks = ["<pad>", "</s>", "<unk>"]
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=200, special_tokens=marks, unk_token="<unk>"))
    return _files(tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def _train(tokenizer: Tokenizer, trainer: Any, lessons: list[str] = LESSONS) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(lessons, trainer)


def _files(tokenizer: Tokenizer, **config: Any) -> dict[str, str]:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    return {
        "tokenizer.json": json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")),
        "tokenizer_config.json": json.dumps(config),
    }


def golden(files: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_text(content, "utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in TEXTS]
    decoded = [tokenizer.decode(i, skip_special_tokens=True, clean_up_tokenization_spaces=False) for i in ids]
    names = ("bos", "eos", "pad", "mask", "sep", "cls", "unk")
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in names}
    return {"files": files, "ids": ids, "decoded": decoded, "size": len(tokenizer), "special": special}


def main() -> None:
    """Trains, runs and writes."""
    kinds = {
        "gpt2": gpt2(),
        "bert uncased": bert(),
        "bert cased": bert(do_lower_case=False, strip_accents=False, tokenize_chinese_chars=False),
        "llama 3": llama3(),
        "llama 2": llama2(),
        "t5": t5(),
    }
    content = {"texts": TEXTS, "kinds": {name: golden(files) for name, files in kinds.items()}}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (GOLDEN / "tokenizers.json").write_text(text.replace('},"', '},\n"') + "\n", "utf-8")


if __name__ == "__main__":
    main()
