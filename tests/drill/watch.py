"""What a process does that reading a file never should, heard by an audit hook of Python's own."""

import os
import sys
from pathlib import Path
from typing import Any


class Watch:
    """An audit hook: what is written outside the allowed folders, run, unpickled or reached by network."""

    def __init__(self, allowed: list[Path]):
        self._allowed = [f"{os.path.realpath(folder)}/" for folder in allowed]
        self._seen: list[str] = []
        sys.addaudithook(self._hear)

    def seen(self) -> list[str]:
        """What was seen since the last call."""
        seen, self._seen = self._seen, []
        return seen

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "os.system", "os.exec"):
            self._seen.append(f"{event}{arguments[1:]!r:.200}")
        elif event == "exec" and not os.path.isfile(arguments[0].co_filename):
            self._seen.append(f"{event} {arguments[0].co_filename} {arguments[0].co_names}")
        elif event == "subprocess.Popen" and arguments[0] != sys.executable:
            self._seen.append(f"{event} {arguments[0]}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._written(event, path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            self._written(event, arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._written(event, arguments[1])

    def _written(self, event: str, path: Any) -> None:
        place = os.path.realpath(os.fsdecode(path)) if not isinstance(path, int) else ""
        if place and place != os.devnull and not f"{place}/".startswith(tuple(self._allowed)):
            self._seen.append(f"{event} {place}")
