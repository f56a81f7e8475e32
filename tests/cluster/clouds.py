"""Google's and Azure's object stores in miniature: their requests and answers as the services' references give them.

They hold objects of one request in memory and check no signature: they show that what hedgerow sends is what those
services ask for, not that the services themselves behave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 500


class Cloud(BaseHTTPRequestHandler):
    """Objects by name, written whole, listed in pages."""

    objects: ClassVar[dict[str, tuple[bytes, int, int]]]
    """Bytes, generation and the second of writing."""
    lock: ClassVar[Any]
    protocol_version = "HTTP/1.1"
    create: tuple[str, str]
    """The header that asks for put-if-absent."""
    taken: int
    """The answer when there is an object already."""

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            if self.name in self.objects and self.headers.get(self.create[0]) == self.create[1]:
                self.answer(self.taken)
                return
            generation = self.objects[self.name][1] + 1 if self.name in self.objects else 1
            self.objects[self.name] = (body, generation, int(time.time()))
            self.answer(201, self.described())

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if query.get("list-type") or query.get("comp") == ["list"]:
            self.enumerate(query)
        else:
            self.do_HEAD()

    def do_HEAD(self) -> None:
        if self.name in self.objects:
            self.answer(200, self.described(), self.objects[self.name][0])
        else:
            self.answer(404)

    def do_DELETE(self) -> None:
        self.answer(204 if self.objects.pop(self.name, None) else 404)

    def enumerate(self, query: dict[str, list[str]]) -> None:
        prefix, after = query.get("prefix", [""])[0], self.token(query)
        found: dict[str, bool] = {}
        for name in sorted(self.objects):
            if name.startswith(prefix):
                head, slash, _ = name.removeprefix(prefix).partition("/")
                is_folder = bool("delimiter" in query and slash)
                found[f"{prefix}{head}/" if is_folder else name] = is_folder
        page = [(name, folder) for name, folder in found.items() if name > after]
        rest = page[PAGE - 1][0] if len(page) > PAGE else ""
        self.answer(200, {"Content-Type": "application/xml"}, self.page(page[:PAGE], rest).encode())

    def token(self, query: dict[str, list[str]]) -> str:
        """The name after which a page begins."""
        raise NotImplementedError

    def page(self, names: list[tuple[str, bool]], rest: str) -> str:
        """Names, each with whether it is a folder, and where the next page begins."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def described(self) -> dict[str, str]:
        _, generation, written = self.objects[self.name]
        return {
            "ETag": f'"{generation}"',
            "Last-Modified": formatdate(written, usegmt=True),
            "x-goog-generation": str(generation),
        }

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Google(Cloud):
    """Cloud Storage's XML interface."""

    create = ("x-goog-if-generation-match", "0")
    taken = 412

    def token(self, query: dict[str, list[str]]) -> str:
        return query.get("continuation-token", [""])[0]

    def page(self, names: list[tuple[str, bool]], rest: str) -> str:
        rows = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            if folder
            else f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[name][0])}</Size>"
            f"<LastModified>{datetime.fromtimestamp(self.objects[name][2], UTC).isoformat()}</LastModified>"
            "<ETag>1</ETag></Contents>"
            for name, folder in names
        )
        more = f"<NextContinuationToken>{escape(rest)}</NextContinuationToken>" if rest else ""
        return f"<ListBucketResult>{rows}{more}</ListBucketResult>"


class Azure(Cloud):
    """Blob Storage."""

    create = ("If-None-Match", "*")
    taken = 409

    def token(self, query: dict[str, list[str]]) -> str:
        return query.get("marker", [""])[0]

    def page(self, names: list[tuple[str, bool]], rest: str) -> str:
        rows = "".join(
            f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>"
            if folder
            else f"<Blob><Name>{escape(name)}</Name><Properties>"
            f"<Last-Modified>{formatdate(self.objects[name][2], usegmt=True)}</Last-Modified>"
            f"<Content-Length>{len(self.objects[name][0])}</Content-Length><Content-Type>x</Content-Type>"
            "<Etag>1</Etag></Properties></Blob>"
            for name, folder in names
        )
        return f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker>{escape(rest)}</NextMarker></EnumerationResults>"

    def do_POST(self) -> None:
        """A batch of deletions, the only requests that come in batches."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answers = []
        asked = [line for line in body.splitlines() if line.startswith("DELETE ")]
        for number, line in enumerate(asked):
            name = unquote(urlsplit(line.split()[1]).path).lstrip("/").partition("/")[2]
            status = "202 Accepted" if self.objects.pop(name, None) else "404 The specified blob does not exist."
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\n\r\n"
            )
        self.answer(
            202, {"Content-Type": "multipart/mixed; boundary=batch"}, ("".join(answers) + "--batch--\r\n").encode()
        )


@contextmanager
def serving(cloud: type[Cloud]) -> Iterator[str]:
    """The URL of an empty one."""
    handler = type(cloud.__name__, (cloud,), {"objects": {}, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
