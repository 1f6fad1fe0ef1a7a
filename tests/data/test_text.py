"""Cutting text: nothing is lost, and cuts stand where no token crosses."""

from hypothesis import given, settings
from hypothesis import strategies as st

from data.text import cut


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 12))
def test_parts_make_the_whole_and_cuts_are_good(text, limit):
    parts = list(cut(text, limit))
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts)
    place = 0
    for part in parts[:-1]:
        place += len(part)
        before, after = text[place - 1], text[place]
        good = (after == " " and before != " ") or (before == "\n" and after != "\n")
        # A cut elsewhere is made only in a stretch of `limit` characters that offers no good place.
        stretch = text[place - len(part) : place + 1]
        offers = [
            i
            for i in range(1, len(stretch))
            if (stretch[i] == " " and stretch[i - 1] != " ") or (stretch[i - 1] == "\n" and stretch[i] != "\n")
        ]
        assert good or not offers


def test_prefers_the_space_before_the_last_word():
    assert list(cut("one two  three", 9)) == ["one two", "  three"]
    assert list(cut("line\n\nnext line", 8)) == ["line\n\n", "next", " line"]
    assert list(cut("가나다라마바사", 3)) == ["가나다", "라마바", "사"]
