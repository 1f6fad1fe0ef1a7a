"""Numbers as people read them: counts, bytes, seconds and shares, short enough for a line."""

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """A count: 950, 35.2k, 1.2M."""
    for least, unit in UNITS:
        if number >= least:
            return f"{number / least:.1f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Seconds as 0:41, 3:21 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def size(number: float) -> str:
    """Bytes as 2.5 MiB or 1.25 GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.1f} MiB"


def share(part: float) -> str:
    """A part of 1 as 12.3%."""
    return f"{part:.1%}" if part >= 0.001 or part == 0 else "<0.1%"
