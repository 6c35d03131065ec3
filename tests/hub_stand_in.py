"""A stand-in for the Hub: no Hub runs here, so this server speaks what its real client asks for.

The client (`huggingface_hub`) is never mocked: HF_ENDPOINT points at this server, which answers on
the loopback interface from memory. Endpoints as seen on the wire with huggingface_hub 2.4: model
info, tree, resolve (ranges, ETag, X-Repo-Commit), preupload, LFS batch with basic and multipart
transfer, commit, create, and tokens for Xet where it is given a store (tests/hub_xet.py).
Its refusals carry the headers by which the client tells them apart.

    with StandIn() as hub:
        hub.add("me/adapter", {"adapter_model.safetensors": weights})
        hub.when("GET", "/resolve/", Drop(after=1000))

`cdn` is another server that large files are redirected to, as the Hub does with signed addresses.
What it does not imitate: git itself, storage quotas, signatures that expire.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from hub_endpoints import ROUTES, Call
from hub_requests import (
    Before,
    Corrupt,
    Drop,
    Fault,
    Lose,
    Refuse,
    Reply,
    Repo,
    Request,
    json_reply,
    missing,
)

if TYPE_CHECKING:
    from hub_xet import XetStore

__all__ = [
    "READER",
    "TOKEN",
    "Before",
    "Corrupt",
    "Drop",
    "Fault",
    "Lose",
    "Refuse",
    "Reply",
    "Repo",
    "Request",
    "StandIn",
    "at_hand",
    "environment",
]

TOKEN = "hf_" + "StandInTokenThatMayWrite00"
READER = "hf_" + "StandInTokenThatMayReadOnly"


@dataclass
class _Trigger:
    method: str
    pattern: str
    fault: Fault
    times: int


class StandIn:
    """The server; a `with` block runs it. `log` is what was asked for, in order.

    `stored` is what lies in LFS by sha256, `parts` what was sent of it in parts of `part_size`.
    Without `ranges` it sends a file whole whatever part of it is asked for.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size: int | None = None
        self.xet: XetStore | None = None
        self.cdn: StandIn | None = None
        self.log: list[Request] = []
        self.sent = 0
        self.ranges = True
        self.page = 1000
        self._triggers: list[_Trigger] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._open = 0
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
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

    def add(self, name: str, files: Mapping[str, bytes], **kinds: bool) -> Repo:
        """A repository with one commit."""
        repo = Repo(**kinds)
        repo.commit(files)
        self.repos[name] = repo
        return repo

    def when(self, method: str, pattern: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests whose path matches `pattern` go wrong."""
        self._triggers.append(_Trigger(method, pattern, fault, times))

    def forget(self) -> None:
        """Nothing goes wrong from now on."""
        self._triggers.clear()

    def asked(self, method: str, pattern: str) -> list[Request]:
        """The requests so far that match."""
        return [
            each for each in self.log if each.method == method and re.search(pattern, each.path)
        ]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A request is being answered inside."""
        with self._changed:
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def settle(self) -> None:
        """Waits until every request is answered, also those of a client that was killed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._open == 0, timeout=60)

    def count(self, length: int) -> None:
        """A body of `length` bytes is about to be sent."""
        with self._lock:
            self.sent += length

    def fault(self, request: Request) -> Fault | None:
        """What goes wrong with this request, if anything."""
        with self._lock:
            self.log.append(request)
            for trigger in self._triggers:
                fits = trigger.method == request.method and re.search(trigger.pattern, request.path)
                if fits and trigger.times:
                    trigger.times -= 1
                    return trigger.fault
        return None

    def reply(self, request: Request, body: bytes) -> Reply:
        """The answer of a Hub that is well."""
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match is not None and method == request.method:
                values = {name: unquote(value) for name, value in match.groupdict().items()}
                refusal = self._refusal(request, values)
                return refusal or answer(self, Call(values, query, body, self.url))
        return Reply(404)

    def _refusal(self, request: Request, values: Mapping[str, str]) -> Reply | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in {"", TOKEN, READER}:
            text = "Invalid credentials in Authorization header"
            return json_reply({"error": text}, 401, X_Error_Message=text)
        posts = request.method == "POST" and not re.search("validate-yaml|/lfs/", request.path)
        writing = posts or "/xet-write-token/" in request.path
        if writing and token != TOKEN:
            return json_reply({"error": "You need a token that may write"}, 403 if token else 401)
        repo = self.repos.get(values.get("repo", ""))
        if "repo" in values and (repo is None or (repo.private and not token)):
            return (
                json_reply({"error": "Repository not found"}, 404 if token else 401)
                if (repo is not None)
                else missing("RepoNotFound")
            )
        if repo is not None and repo.gated and token != TOKEN and "/resolve/" in request.path:
            return json_reply({"error": "gated"}, 403 if token else 401, X_Error_Code="GatedRepo")
        return None

    def at(self, repo: Repo, revision: str) -> str | None:
        """The commit that a revision means."""
        return repo.branches.get(revision) or (revision if revision in repo.commits else None)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing on stderr."""

    def _serve(self) -> None:
        with self.server.hub.answering():
            self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        fault = self.server.hub.fault(request)
        if isinstance(fault, Before):
            fault.step()
        if isinstance(fault, Refuse):
            self._send(Reply(fault.status, b"{}", fault.headers))
            return
        reply = self.server.hub.reply(request, body)
        if isinstance(fault, Lose):
            self.close_connection = True
            return
        self._send(reply, fault)

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, reply: Reply, fault: Fault | None = None) -> None:
        body, status, headers = reply.body, reply.status, dict(reply.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and status == 200 and "ETag" in headers and self.server.hub.ranges:
            start, stop = int(wanted[1]), int(wanted[2] or len(body) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            body, status = body[start:stop], 206
        if isinstance(fault, Corrupt):
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if isinstance(fault, Drop):
            body = body[: fault.after]
            self.close_connection = True
        if self.command != "HEAD":
            self.server.hub.count(len(body))
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - names that http.server looks for


def at_hand(patch: pytest.MonkeyPatch, hub: StandIn, token: str = TOKEN) -> None:
    """Point the client in this process at the server; it looks nowhere else."""
    from huggingface_hub import constants

    for name, value in environment(hub, token).items():
        patch.setenv(name, value)
    # Read once, when the client is imported: another test may have done so already.
    patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)


def environment(hub: StandIn, token: str = TOKEN) -> dict[str, str]:
    """The same for another process."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1"}


class _Server(ThreadingHTTPServer):
    """The listening socket, and whose it is."""

    daemon_threads = True

    def __init__(self, hub: StandIn) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""
