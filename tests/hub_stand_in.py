"""A stand-in for the Hub: no Hub runs here, so this server speaks what its real client asks for.

The client (`huggingface_hub`) is never mocked: HF_ENDPOINT points at this server, which answers on
the loopback interface from memory. Endpoints as seen on the wire with huggingface_hub 2.4: model
info, tree, resolve (ranges, ETag, X-Repo-Commit), preupload, LFS batch with basic transfer, commit,
create. It has no Xet. Its refusals carry the headers by which the client tells them apart.

    with StandIn() as hub:
        hub.add("me/adapter", {"adapter_model.safetensors": weights})
        hub.when("GET", "/resolve/", Drop(after=1000))

What it does not imitate: git itself, storage quotas, redirects to a content delivery network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".unmerge")
TOKEN = "hf_" + "StandInTokenThatMayWrite00"
READER = "hf_" + "StandInTokenThatMayReadOnly"
NO_GIT = "0" * 40


@dataclass(frozen=True)
class Refuse:
    """Answers with a status instead."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """Promises the whole body, sends `after` bytes of it and closes the connection."""

    after: int = 0


@dataclass(frozen=True)
class Corrupt:
    """Sends a body of the right size with its last byte changed."""


@dataclass(frozen=True)
class Lose:
    """Does what was asked for and closes the connection without an answer."""


@dataclass(frozen=True)
class Before:
    """Does something on the server first: moves a branch, stops a process, waits for an event."""

    step: Callable[[], object]


Fault = Refuse | Drop | Corrupt | Lose | Before


@dataclass
class _Trigger:
    method: str
    pattern: str
    fault: Fault
    times: int


@dataclass(frozen=True)
class Request:
    """What a client asked for; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Repo:
    """A repository: `commits` are whole trees, path to content."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit with exactly these files at the head of `branch`."""
        seed = repr((len(self.commits), branch, sorted(files))).encode()
        oid = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    @property
    def head(self) -> str:
        """The commit of main."""
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        """What main holds."""
        return self.commits[self.head]


def _json(body: Any, status: int = 200, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **names})


def _missing(what: str) -> Reply:
    return _json({"error": f"{what} not found"}, 404, X_Error_Code=what)


def blob_oid(content: bytes) -> str:
    """git's name of a file."""
    framed = f"blob {len(content)}\0".encode() + content
    return hashlib.sha1(framed, usedforsecurity=False).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether the Hub keeps such a file in LFS."""
    return path.endswith(LFS_SUFFIXES)


class StandIn:
    """The server; a `with` block runs it. `log` is what was asked for, in order."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.sent = 0
        self.page = 1000
        self._triggers: list[_Trigger] = []
        self._lock = threading.Lock()
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

    def asked(self, method: str, pattern: str) -> list[Request]:
        """The requests so far that match."""
        return [
            each for each in self.log if each.method == method and re.search(pattern, each.path)
        ]

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
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match is not None and method == request.method:
                values = {name: unquote(value) for name, value in match.groupdict().items()}
                refusal = self._refusal(request, values)
                return refusal or answer(self, _Call(values, query, body, self.url))
        return Reply(404)

    def _refusal(self, request: Request, values: Mapping[str, str]) -> Reply | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in {"", TOKEN, READER}:
            text = "Invalid credentials in Authorization header"
            return _json({"error": text}, 401, X_Error_Message=text)
        writing = request.method == "POST" and "validate-yaml" not in request.path
        if writing and token != TOKEN:
            return _json({"error": "You need a token that may write"}, 403 if token else 401)
        repo = self.repos.get(values.get("repo", ""))
        if "repo" in values and (repo is None or (repo.private and not token)):
            return (
                _json({"error": "Repository not found"}, 404 if token else 401)
                if (repo is not None)
                else _missing("RepoNotFound")
            )
        if repo is not None and repo.gated and token != TOKEN and "/resolve/" in request.path:
            return _json({"error": "gated"}, 403 if token else 401, X_Error_Code="GatedRepo")
        return None

    def at(self, repo: Repo, revision: str) -> str | None:
        """The commit that a revision means."""
        return repo.branches.get(revision) or (revision if revision in repo.commits else None)


@dataclass(frozen=True)
class _Call:
    values: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    url: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _info(hub: StandIn, call: _Call) -> Reply:
    repo = hub.repos[call.values["repo"]]
    commit = hub.at(repo, call.values.get("revision", "main"))
    if commit is None:
        return _missing("RevisionNotFound")
    siblings = [{"rfilename": name} for name in repo.commits[commit]]
    name = call.values["repo"]
    return _json(
        {"id": name, "sha": commit, "private": repo.private, "tags": [], "siblings": siblings}
    )


def _tree(hub: StandIn, call: _Call) -> Reply:
    repo = hub.repos[call.values["repo"]]
    commit = hub.at(repo, call.values["revision"])
    if commit is None:
        return _missing("RevisionNotFound")
    rows = [_row(path, content) for path, content in sorted(repo.commits[commit].items())]
    start = int(call.query.get("cursor", "0"))
    stop = start + hub.page
    if stop >= len(rows):
        return _json(rows[start:])
    path = f"{call.url}/api/models/{call.values['repo']}/tree/{commit}?recursive=true&cursor={stop}"
    return _json(rows[start:stop], Link=f'<{path}>; rel="next"')


def _row(path: str, content: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if not is_lfs(path):
        return {**row, "oid": blob_oid(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    lfs = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return {**row, "oid": blob_oid(sha256.encode()), "lfs": lfs}


def _resolve(hub: StandIn, call: _Call) -> Reply:
    repo = hub.repos[call.values["repo"]]
    commit = hub.at(repo, call.values["revision"])
    if commit is None:
        return _missing("RevisionNotFound")
    content = repo.commits[commit].get(call.values["path"])
    if content is None:
        return _missing("EntryNotFound")
    return Reply(200, content, {"X-Repo-Commit": commit, "ETag": f'"{blob_oid(content)}"'})


def _create(hub: StandIn, call: _Call) -> Reply:
    owner, name = call.json.get("organization") or "me", call.json["name"]
    where = f"{call.url}/{owner}/{name}"
    if f"{owner}/{name}" in hub.repos:
        return _json({"error": "You already created this model repo", "url": where}, 409)
    private = call.json.get("visibility") == "private" or bool(call.json.get("private"))
    hub.add(f"{owner}/{name}", {".gitattributes": b""}, private=private)
    return _json({"url": where})


def _preupload(hub: StandIn, call: _Call) -> Reply:
    files = hub.repos[call.values["repo"]].files
    rows = []
    for asked in call.json["files"]:
        path = asked["path"]
        row = {
            "path": path,
            "shouldIgnore": False,
            "uploadMode": "lfs" if is_lfs(path) else "regular",
        }
        if path in files:
            there = files[path]
            row["oid"] = hashlib.sha256(there).hexdigest() if is_lfs(path) else blob_oid(there)
        rows.append(row)
    return _json({"files": rows})


def _batch(hub: StandIn, call: _Call) -> Reply:
    rows = []
    for asked in call.json["objects"]:
        row: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in hub.stored:
            row["actions"] = {"upload": {"href": f"{call.url}/lfs/{asked['oid']}"}}
        rows.append(row)
    return _json({"transfer": "basic", "objects": rows})


def _upload(hub: StandIn, call: _Call) -> Reply:
    if hashlib.sha256(call.body).hexdigest() != call.values["oid"]:
        return Reply(400)
    hub.stored[call.values["oid"]] = call.body
    return Reply(200)


def _commit(hub: StandIn, call: _Call) -> Reply:
    repo = hub.repos[call.values["repo"]]
    lines = [json.loads(line) for line in call.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    branch = call.values["revision"]
    if header.get("parentCommit") not in {None, repo.branches[branch]}:
        return _json({"error": "A commit has happened since. Please refresh and try again."}, 412)
    files = dict(repo.commits[repo.branches[branch]])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.stored:
                return _json({"error": "LFS pointer pointed to a file that does not exist"}, 400)
            files[value["path"]] = hub.stored[value["oid"]]
    asks = call.query.get("create_pr") == "1"
    target = f"refs/pr/{len(repo.requests) + 1}" if asks else branch
    oid = repo.commit(files, target)
    where = f"{call.url}/{call.values['repo']}"
    body = {"success": True, "commitOid": oid, "commitUrl": f"{where}/commit/{oid}"}
    if asks:
        repo.requests.append(header["summary"])
        body["pullRequestUrl"] = f"{where}/discussions/{len(repo.requests)}"
    return _json(body)


def _accepted(hub: StandIn, call: _Call) -> Reply:
    del hub, call
    return _json({"errors": [], "warnings": []})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[[StandIn, _Call], Reply]], ...] = (
    ("POST", r"/api/repos/create", _create),
    ("POST", r"/api/validate-yaml", _accepted),
    ("GET", rf"/api/models/{_REPO}", _info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", _info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _tree),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _upload),
    ("HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing on stderr."""

    def _serve(self) -> None:
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
        if wanted and status == 200 and "ETag" in headers:
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
            self.wfile.write(body)
            self.server.hub.sent += len(body)

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
