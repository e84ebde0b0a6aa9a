"""A small Hugging Face hub on loopback: the requests that `datasets` and `huggingface_hub` make.

Serves data set repositories from dictionaries of files, one commit each:

    with HubServer({"someone/stories": {"train.jsonl": b"..."}}) as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})

`python tests/hub_server.py DIRECTORY` serves the folders DIRECTORY/<owner>/<name> and prints the
variables to set, for trying things by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Repositories = dict[str, dict[str, bytes]]


class HubServer:
    """A hub with these data sets; files must be sorted out before it starts.

    Args:
        repositories: "owner/name" -> path in the repository -> content.
        handler: what answers, for a hub that misbehaves.

    Attributes:
        requests: "METHOD /path" of every request so far.
    """

    def __init__(self, repositories: Repositories, handler: type[Handler] | None = None) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        bound = type("Bound", (handler or Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, repository: str) -> str:
        """The 40 hexadecimal digits of the one commit of a repository."""
        digest = hashlib.sha1(repository.encode())
        for path, content in sorted(self.repositories[repository].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs in its environment to use this hub, with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        path = unquote(url.path)
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/(.+?)/(.+)", path):
            # a revision may itself have slashes: refs/convert/parquet
            repository, rest = match[1], f"{match[2]}/{match[3]}"
            if (content := self._checked(repository, rest)) is not None:
                self.send_file(repository, rest[len(content) + 1 :])
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if self._checked(match[1], match[2] or "main") is not None:
                self._send_json(self._info(match[1]))
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/(.+)", path):
            if (revision := self._checked(match[1], match[2])) is not None:
                folder = match[2][len(revision) + 1 :]
                recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
                self._send_json(self._tree(match[1], folder, recursive))
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/(.+)", path):
            if self._checked(match[1], match[2]) is not None:
                self._send_json(self._paths_info(match[1], parse_qs(body.decode())["paths"]))
        else:
            self._send_error("EntryNotFound")

    def _checked(self, repository: str, rest: str) -> str | None:
        """The revision that `rest` starts with; None after an error was sent."""
        if repository not in self.hub.repositories:
            self._send_error("RepoNotFound")
            return None
        for revision in ("main", self.hub.commit(repository)):
            if rest == revision or rest.startswith(revision + "/"):
                return revision
        self._send_error("RevisionNotFound")
        return None

    def _info(self, repository: str) -> dict[str, Any]:
        return {
            "id": repository,
            "sha": self.hub.commit(repository),
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in self.hub.repositories[repository]],
        }

    def _tree(self, repository: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.hub.repositories[repository]):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                found[name] = self._entry(repository, name)
            if recursive or len(parts) == 1:
                found[path] = self._entry(repository, path)
        return list(found.values())

    def _paths_info(self, repository: str, paths: list[str]) -> list[dict[str, Any]]:
        files = self.hub.repositories[repository]
        known = [
            path for path in paths if path in files or any(f.startswith(path + "/") for f in files)
        ]
        return [self._entry(repository, path) for path in known]

    def _entry(self, repository: str, path: str) -> dict[str, Any]:
        content = self.hub.repositories[repository].get(path)
        if content is None:
            oid = hashlib.sha1(path.encode()).hexdigest()
            return {"type": "directory", "path": path, "oid": oid, "size": 0}
        return {"type": "file", "path": path, "oid": _etag(content), "size": len(content)}

    def send_file(self, repository: str, path: str) -> None:
        """Answer a request for one file."""
        content = self.hub.repositories[repository].get(path)
        if content is None:
            self._send_error("EntryNotFound")
            return
        headers = {
            "ETag": f'"{_etag(content)}"',
            "X-Repo-Commit": self.hub.commit(repository),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.send(status, headers, content)

    def _send_json(self, value: Any) -> None:
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send_error(self, code: str) -> None:
        # the hub answers 401 for a repository that is private or does not exist
        status = 401 if code == "RepoNotFound" else 404
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self.send(status, headers, b'{"error": "not found"}')

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    """The name that git has for it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def main() -> None:
    root = Path(sys.argv[1])
    repositories = {
        folder.relative_to(root).as_posix(): {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in root.glob("*/*")
    }
    with HubServer(repositories) as hub:
        print("\n".join(f"export {k}={v}" for k, v in hub.environment(root / ".hf").items()))
        threading.Event().wait()


if __name__ == "__main__":
    main()
