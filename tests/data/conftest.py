"""Texts that the tests of this room share."""

import pytest

# What breaks tokenizers: no text, control characters, runs of spaces, other scripts, SentencePiece's own marks.
TRICKY = [
    "",
    "\n",
    "\n\n\nx\n\n",
    "a\r\nb\r\n",
    "a\tb\t\tc",
    " leading",
    "   three leading",
    "two  inside   three",
    "trailing  ",
    "zero\0byte",
    "\ufeffmark",
    "안녕하세요, 세계!",
    "naïve café e\u0301 \ufb01",
    "🎉 👩‍👩‍👧 🇰🇷",
    "\u2581 is SentencePiece's space, \u2585 its unknown",
    "\u00a0\u3000\u2028 other spaces",
    "def f(x):\n    if x:\n        return x\n\n\n",
]


@pytest.fixture(scope="session")
def tricky() -> list[str]:
    return TRICKY


@pytest.fixture(scope="session")
def english() -> str:
    """Text of which a small vocabulary can be learned."""
    subjects, verbs = ("the cat", "a small dog", "our teacher", "nobody"), ("sees", "follows", "remembers", "paints")
    objects = ("the river", "an old house", "seven letters", "his own shadow", "the moon")
    lines = [f"{s} {v} {o}.\n" for s in subjects for v in verbs for o in objects]
    return "".join(lines) + "\n" + "".join(f"    {line}" for line in lines) * 3
