"""How a long piece of work says how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with what is done and what there is in all: stored bytes, records, tokens or files."""
