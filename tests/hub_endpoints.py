"""The endpoints of the stand-in of the Hub: one function each, as seen on the wire."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hub_requests import Reply, blob_oid, is_lfs, json_reply, missing, sha256_of

if TYPE_CHECKING:
    from hub_stand_in import StandIn


@dataclass(frozen=True)
class Call:
    """A request, taken apart: the path's named parts, the query, the body."""

    values: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    url: str

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def _info(hub: StandIn, call: Call) -> Reply:
    repo = hub.repos[call.values["repo"]]
    commit = hub.at(repo, call.values.get("revision", "main"))
    if commit is None:
        return missing("RevisionNotFound")
    siblings = [{"rfilename": name} for name in repo.commits[commit]]
    name = call.values["repo"]
    return json_reply(
        {"id": name, "sha": commit, "private": repo.private, "tags": [], "siblings": siblings}
    )


def _tree(hub: StandIn, call: Call) -> Reply:
    repo = hub.repos[call.values["repo"]]
    commit = hub.at(repo, call.values["revision"])
    if commit is None:
        return missing("RevisionNotFound")
    rows = [_row(hub, path, content) for path, content in sorted(repo.commits[commit].items())]
    start = int(call.query.get("cursor", "0"))
    stop = start + hub.page
    if stop >= len(rows):
        return json_reply(rows[start:])
    path = f"{call.url}/api/models/{call.values['repo']}/tree/{commit}?recursive=true&cursor={stop}"
    return json_reply(rows[start:stop], Link=f'<{path}>; rel="next"')


def _row(hub: StandIn, path: str, content: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if not is_lfs(path):
        return {**row, "oid": blob_oid(content)}
    sha256 = sha256_of(content)
    lfs = {"oid": sha256, "size": len(content), "pointerSize": 134}
    row = {**row, "oid": blob_oid(sha256.encode()), "lfs": lfs}
    xet_hash = hub.xet and hub.xet.hash_of(sha256)
    return {**row, "xetHash": xet_hash} if xet_hash else row


def _resolve(hub: StandIn, call: Call) -> Reply:
    repo, path = hub.repos[call.values["repo"]], call.values["path"]
    commit = hub.at(repo, call.values["revision"])
    if commit is None:
        return missing("RevisionNotFound")
    content = repo.commits[commit].get(path)
    if content is None:
        return missing("EntryNotFound")
    headers = {"X-Repo-Commit": commit}
    if not is_lfs(path):
        return Reply(200, content, {**headers, "ETag": f'"{blob_oid(content)}"'})
    sha256 = sha256_of(content)
    headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"'}
    headers |= _xet_headers(hub, call, sha256)
    if hub.cdn is None:
        return Reply(200, content, {**headers, "ETag": f'"{sha256}"'})
    hub.cdn.stored[sha256] = content
    return Reply(302, b"", {**headers, "Location": f"{hub.cdn.url}/lfs/{sha256}?Signature=secret"})


def _xet_headers(hub: StandIn, call: Call, sha256: str) -> dict[str, str]:
    xet_hash = hub.xet and hub.xet.hash_of(sha256)
    if not xet_hash:
        return {}
    where = f"{call.url}/api/models/{call.values['repo']}/xet-read-token/{call.values['revision']}"
    return {"X-Xet-Hash": xet_hash, "Link": f'<{where}>; rel="xet-auth"'}


def _xet_token(hub: StandIn, call: Call) -> Reply:
    del call
    return missing("EntryNotFound") if hub.xet is None else hub.xet.token()


def _stored(hub: StandIn, call: Call) -> Reply:
    content = hub.stored.get(call.values["oid"])
    return Reply(404) if content is None else Reply(200, content, {"ETag": '"stored"'})


def _create(hub: StandIn, call: Call) -> Reply:
    owner, name = call.json.get("organization") or "me", call.json["name"]
    where = f"{call.url}/{owner}/{name}"
    if f"{owner}/{name}" in hub.repos:
        return json_reply({"error": "You already created this model repo", "url": where}, 409)
    private = call.json.get("visibility") == "private" or bool(call.json.get("private"))
    hub.add(f"{owner}/{name}", {".gitattributes": b""}, private=private)
    return json_reply({"url": where})


def _preupload(hub: StandIn, call: Call) -> Reply:
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
            row["oid"] = sha256_of(there) if is_lfs(path) else blob_oid(there)
        rows.append(row)
    return json_reply({"files": rows})


def _batch(hub: StandIn, call: Call) -> Reply:
    rows = []
    for asked in call.json["objects"]:
        row: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in hub.stored:
            row["actions"] = _actions(hub, call, asked["oid"], asked["size"])
        rows.append(row)
    whole = hub.part_size is None
    return json_reply({"transfer": "basic" if whole else "multipart", "objects": rows})


def _actions(hub: StandIn, call: Call, oid: str, size: int) -> dict[str, Any]:
    href = f"{call.url}/lfs/{oid}"
    verify = {"href": f"{href}/verify"}
    if hub.part_size is None:
        return {"upload": {"href": href}, "verify": verify}
    count = -(-size // hub.part_size)
    urls = {str(part): f"{href}/parts/{part}" for part in range(1, count + 1)}
    header = {"chunk_size": str(hub.part_size), **urls}
    return {"upload": {"href": f"{href}/complete", "header": header}, "verify": verify}


def _upload(hub: StandIn, call: Call) -> Reply:
    return _store(hub, call.values["oid"], call.body)


def _upload_part(hub: StandIn, call: Call) -> Reply:
    hub.parts[call.values["oid"], int(call.values["part"])] = call.body
    return Reply(200, b"", {"ETag": f'"{sha256_of(call.body)[:32]}"'})


def _complete(hub: StandIn, call: Call) -> Reply:
    """The parts in the order that is asked for; each must be the one that its ETag names."""
    oid, chunks = call.values["oid"], []
    for asked in call.json["parts"]:
        chunk = hub.parts.get((oid, asked["partNumber"]))
        if chunk is None or asked["etag"] != f'"{sha256_of(chunk)[:32]}"':
            return Reply(400)
        chunks.append(chunk)
    return _store(hub, oid, b"".join(chunks))


def _store(hub: StandIn, oid: str, content: bytes) -> Reply:
    if sha256_of(content) != oid:
        return Reply(400)
    hub.stored[oid] = content
    return Reply(200)


def _verify(hub: StandIn, call: Call) -> Reply:
    content = hub.stored.get(call.json["oid"])
    return Reply(200 if content is not None and len(content) == call.json["size"] else 404)


def _large(hub: StandIn, oid: str) -> bytes | None:
    """What was uploaded under this sha256, whichever way it came."""
    if oid not in hub.stored and hub.xet is not None:
        content = hub.xet.content(oid)
        if content is not None:
            hub.stored[oid] = content
    return hub.stored.get(oid)


def _commit(hub: StandIn, call: Call) -> Reply:
    repo = hub.repos[call.values["repo"]]
    lines = [json.loads(line) for line in call.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    branch = call.values["revision"]
    if header.get("parentCommit") not in {None, repo.branches[branch]}:
        return json_reply(
            {"error": "A commit has happened since. Please refresh and try again."}, 412
        )
    files = dict(repo.commits[repo.branches[branch]])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            content = _large(hub, value["oid"])
            if content is None:
                text = "LFS pointer pointed to a file that does not exist"
                return json_reply({"error": text}, 400)
            files[value["path"]] = content
    asks = call.query.get("create_pr") == "1"
    target = f"refs/pr/{len(repo.requests) + 1}" if asks else branch
    oid = repo.commit(files, target)
    where = f"{call.url}/{call.values['repo']}"
    body = {"success": True, "commitOid": oid, "commitUrl": f"{where}/commit/{oid}"}
    if asks:
        repo.requests.append(header["summary"])
        body["pullRequestUrl"] = f"{where}/discussions/{len(repo.requests)}"
    return json_reply(body)


def _accepted(hub: StandIn, call: Call) -> Reply:
    del hub, call
    return json_reply({"errors": [], "warnings": []})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_LFS = r"/lfs/(?P<oid>[0-9a-f]{64})"
ROUTES: tuple[tuple[str, str, Callable[[StandIn, Call], Reply]], ...] = (
    ("POST", r"/api/repos/create", _create),
    ("POST", r"/api/validate-yaml", _accepted),
    ("GET", rf"/api/models/{_REPO}", _info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", _info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _tree),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _batch),
    ("GET", rf"/api/models/{_REPO}/xet-(?:read|write)-token/(?P<revision>[^/]+)", _xet_token),
    ("PUT", _LFS, _upload),
    ("PUT", rf"{_LFS}/parts/(?P<part>\d+)", _upload_part),
    ("POST", rf"{_LFS}/complete", _complete),
    ("POST", rf"{_LFS}/verify", _verify),
    ("GET", _LFS, _stored),
    ("HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
)
