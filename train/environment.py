"""The process around a run: how it is prepared before JAX is first imported, which nothing here does; its versions."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
import warnings
from pathlib import Path

from data.cache import cache_folder

_ROOT = Path(__file__).resolve().parents[1]
_SHOWN_WITH_PLACE = warnings.formatwarning
# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def prepare() -> None:
    """Sets what JAX, XLA and the allocator are started with; what the user's environment says already, stays."""
    _keep_memory_mapped()
    # Compiled programs are kept, so that a second start takes seconds, even where each took only a moment.
    with contextlib.suppress(ValueError):  # without a folder to keep them in they are compiled anew
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault(
        "JAX_TRACEBACK_FILTERING", "off"
    )  # tracebacks go to files, and are for those who look into them
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's errors, not its remarks
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Ours are sentences for users, without their place in a file."""
    if Path(filename).is_relative_to(_ROOT):
        return f"jumok: {message}\n"
    return _SHOWN_WITH_PLACE(message, category, filename, lineno, line)


def versions() -> dict[str, str]:
    """The versions of Python and of what arrays are computed and kept with."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def make_deterministic() -> None:
    """Lets a GPU repeat what it computes bit for bit. XLA reads its flags when JAX first looks for devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def _keep_memory_mapped() -> None:
    """Lets glibc keep what is freed, on machines that compute on their CPU; JUMOK_NO_MALLOPT=1 leaves it alone.

    XLA's temporary buffers are hundreds of megabytes, freed after every step. By default each step maps them anew, and
    pays a page fault for every four kilobytes: a third of the time of a small model's step. XLA allocates them in
    threads of its own, whose arenas cannot hold so much, and so there is one arena for all.
    """
    accelerated = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    if sys.platform != "linux" or accelerated or os.environ.get("JUMOK_NO_MALLOPT"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20)):
            mallopt(parameter, value)
