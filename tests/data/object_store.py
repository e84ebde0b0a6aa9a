"""A store that speaks S3, on loopback, behind a proxy that can misbehave."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY, SECRET = "testing-key-id", "testing-secret-key"


class Store:
    """What the tests see of it."""

    def __init__(self, endpoint: str, backend: str) -> None:
        self.endpoint = endpoint
        self.faults: list[str] = []
        """One is used up by each answer to a question for a range: "cut" ends the body early with
        the announced length, "short" announces fewer bytes too, "503" is an error of the server."""
        self.log: list[tuple[str, str, int]] = []
        """Method, range and bytes of the body of each answer."""
        self._backend = backend
        import boto3

        self.client = boto3.client(
            "s3", endpoint_url=backend, region_name="us-east-1",
            aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        )  # fmt: skip
        self.client.create_bucket(Bucket="texts")

    def put(self, name: str, data: bytes) -> str:
        """Store an object; returns its address."""
        self.client.put_object(Bucket="texts", Key=name, Body=data)
        return f"s3://texts/{name}"


@contextmanager
def object_store() -> Iterator[Store]:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    proxy.daemon_threads = True
    try:
        store = Store(f"http://127.0.0.1:{proxy.server_port}", f"http://127.0.0.1:{port}")
        proxy.store = store  # type: ignore[attr-defined]
        proxy.backend = ("127.0.0.1", port)  # type: ignore[attr-defined]
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        store: Store = self.server.store  # type: ignore[attr-defined]
        backend = http.client.HTTPConnection(*self.server.backend)  # type: ignore[attr-defined]
        backend.request(self.command, self.path, headers=dict(self.headers))
        answer = backend.getresponse()
        body = answer.read()
        wanted = self.headers.get("Range", "")
        fault = store.faults.pop(0) if store.faults and wanted else ""
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "short":
            body = body[: len(body) // 2]
        store.log.append((self.command, wanted, len(body)))
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    do_GET = do_HEAD = _pass_on

    def log_message(self, *arguments: object) -> None:
        pass
