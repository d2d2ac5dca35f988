"""A local stand-in for the hub's endpoint: one data set at one commit, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repository: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The endpoint's address, and the paths that were asked for; files are those of ``COMMIT`` and main."""
    asked: list[str] = []
    tree = [
        {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
        for name, raw in sorted(files.items())
    ]
    tree += [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
             for folder in sorted({name.rpartition("/")[0] for name in files} - {""})]  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            wanted = json.loads(self.rfile.read(length) or b"{}").get("paths", [])
            self.send(200, json.dumps([entry for entry in tree if entry["path"] in wanted]).encode(), True)

        def answer(self, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            asked.append(path)
            api = f"/api/datasets/{repository}"
            resolve = [f"/datasets/{repository}/resolve/{rev}/" for rev in (COMMIT, "main")]
            name = next((path.removeprefix(prefix) for prefix in resolve if path.startswith(prefix)), None)
            if name in files:
                self.send(200, files[name], body, {"X-Repo-Commit": COMMIT})
            elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                about = {"id": repository, "sha": COMMIT, "private": False, "gated": False, "downloads": 0,
                         "likes": 0, "tags": [], "siblings": [{"rfilename": n} for n in files]}  # fmt: skip
                self.send(200, json.dumps(about).encode(), body)
            elif path.startswith((f"{api}/tree/{COMMIT}", f"{api}/tree/main")):
                below = path.split("/tree/", 1)[1].partition("/")[2]
                entries = [e for e in tree if not below or str(e["path"]).startswith(below + "/")]
                self.send(200, json.dumps(entries).encode(), body)
            else:
                error = "EntryNotFound" if name is not None else "RepoNotFound"
                self.send(404, b"{}", body, {"X-Error-Code": error})

        def send(self, status: int, raw: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            begin, end = 0, len(raw)
            if status == 200 and (wanted := self.headers.get("Range", "")).startswith("bytes="):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last or len(raw)) + 1, len(raw))
                status = 206
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
            self.send_header("Content-Length", str(end - begin))
            if status == 206:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(raw)}")
            self.end_headers()
            if body:
                self.wfile.write(raw[begin:end])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
