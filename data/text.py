"""Where a long text may be cut so that its parts can be tokenized apart."""

from collections.abc import Iterator


def cut_at(text: str, limit: int) -> int:
    """The last good place to cut `text`, in (0, limit]; `text` is longer than `limit`.

    A good place is before a run of spaces, or else after a run of line feeds: no piece of our vocabularies crosses
    those (data/tokenizers/), so the parts' tokens together are the whole's. Text without either is cut at `limit`.
    """
    space = text.rfind(" ", 1, limit + 1)
    if space > 0 and (start_of_run := len(text[:space].rstrip(" "))) > 0:
        return start_of_run
    line_feed = text.rfind("\n", 0, limit)
    while line_feed >= 0 and text[line_feed + 1] == "\n":  # inside a run: look before it
        line_feed = text.rfind("\n", 0, len(text[:line_feed].rstrip("\n")))
    return line_feed + 1 if line_feed >= 0 else limit


def cut(text: str, limit: int) -> Iterator[str]:
    """The parts of `text`, each at most `limit` characters, cut at the last good place."""
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit + 1]
        stop = start + cut_at(window, limit)
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]
