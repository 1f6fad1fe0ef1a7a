"""The process that trial.py starts: it loads a SentencePiece model from standard input, and cuts every character.

It imports nothing of this project, since it should start fast and has nothing to lose.
"""

import resource
import sys

import sentencepiece

_MEMORY = 4 << 30  # bytes of addresses, of which the largest models take a fraction
_CPU_SECONDS = 50
_STRETCH = 4096  # characters that are cut together


def main() -> None:
    """Does what a tokenizer does with its model; what is wrong raises, or ends the process."""
    for limit, most in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, allowed = resource.getrlimit(limit)
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(limit, (most, allowed))
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(sys.stdin.buffer.read())
    for token in range(processor.vocab_size()):
        processor.id_to_piece(token)
    letters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    for begin in range(0, len(letters), _STRETCH):
        stretch = "".join(letters[begin : begin + _STRETCH])
        processor.normalize(stretch)
        processor.decode(processor.encode(stretch))
    processor.encode(["a  b\n\n" * 100, ""], num_threads=1)


if __name__ == "__main__":
    main()
