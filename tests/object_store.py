"""An object store in memory: through fsspec, as etils.epath sees it, and by HTTP, as TensorStore writes arrays to it.

By HTTP it speaks what TensorStore needs of Google Cloud Storage's JSON API: objects are written whole, read in ranges
and listed by prefix, each under preconditions on its generation. As there, folders are nothing but the names of what
is in them.
"""

import contextlib
import json
import re
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class ObjectStore(MemoryFileSystem):
    """The objects of all buckets, by "/bucket/name" in `store`."""

    cachable = False
    protocol = "gs"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol("/" + path.removeprefix("gs://"))

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.is_full = False  # whether it refuses what is written to it by HTTP

    def replace_gs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes it what gs:// is in a test."""
        monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda *_: self)

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Makes nothing: there are no folders."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes nothing: there are no folders."""

    def glob(self, path: str, **options: Any) -> list[str]:
        """The names that match, as stores give them, without a slash before the bucket."""
        return [str(name).lstrip("/") for name in super().glob(path, **options)]

    def write(self, name: str, content: bytes) -> None:
        """Writes an object whole."""
        self.store[name] = MemoryFile(self, name, content)


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def do_GET(self) -> None:
        bucket, name, query = self._read_url()
        if not name:
            names = sorted(key for key in self.store.store if key.startswith(f"/{bucket}/{query.get('prefix', '')}"))
            return self._answer(200, {"items": [self._describe(key) for key in names]})
        content = self._content(f"/{bucket}/{name}")
        if content is None:
            return self._answer(404)
        if query.get("ifGenerationNotMatch") == _generation(content):
            return self._answer(304)
        if not self._is_expected(query, content):
            return self._answer(412)
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not part:
            return self._answer(200, content, content)
        first = int(part[1]) if part[1] else max(len(content) - int(part[2]), 0)
        last = min(int(part[2]), len(content) - 1) if part[1] and part[2] else len(content) - 1
        return self._answer(206, content[first : last + 1], content, f"bytes {first}-{last}/{len(content)}")

    def do_POST(self) -> None:
        bucket, _, query = self._read_url()
        content, key = self.rfile.read(int(self.headers["Content-Length"])), f"/{bucket}/{query['name']}"
        if self.store.is_full:
            return self._answer(403)
        if not self._is_expected(query, self._content(key)):
            return self._answer(412)
        self.store.write(key, content)
        return self._answer(200, self._describe(key))

    def do_DELETE(self) -> None:
        bucket, name, query = self._read_url()
        if not self._is_expected(query, self._content(f"/{bucket}/{name}")):
            return self._answer(412)
        return self._answer(204 if self.store.store.pop(f"/{bucket}/{name}", None) else 404)

    def log_message(self, format: str, *values: Any) -> None:
        pass

    def _read_url(self) -> tuple[str, str, dict[str, str]]:
        """The bucket, the object's name and the query."""
        url = urlsplit(self.path)
        found = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.*))?", url.path)
        assert found, f"{self.path} is not understood here"
        return found[1], unquote(found[2] or ""), {name: values[-1] for name, values in parse_qs(url.query).items()}

    def _content(self, key: str) -> bytes | None:
        file = self.store.store.get(key)
        return None if file is None else file.getvalue()

    def _describe(self, key: str) -> dict[str, str]:
        content = self.store.store[key].getvalue()
        return {"name": key.split("/", 2)[2], "generation": _generation(content), "size": str(len(content))}

    def _is_expected(self, query: dict[str, str], content: bytes | None) -> bool:
        generation = "0" if content is None else _generation(content)
        return query.get("ifGenerationMatch", generation) == generation

    def _answer(self, code: int, body: Any = b"", of: bytes | None = None, part: str = "") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        if of is not None:
            self.send_header("x-goog-generation", _generation(of))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(content)


def _generation(content: bytes) -> str:
    """A number that an object has until it holds something else."""
    return str(1 + zlib.crc32(content))


@contextlib.contextmanager
def serve(store: ObjectStore) -> Iterator[str]:
    """Serves a store by HTTP, in the background of this process; yields the address."""
    requests = type("Requests", (_Requests,), {"store": store})
    with ThreadingHTTPServer(("127.0.0.1", 0), requests) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
