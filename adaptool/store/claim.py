"""Who writes an output: what a lock file says of its holder, and whether that still holds.

Locks of the kernel are not enough: on Lustre, GPFS, NFS and some FUSE file systems asking for one
always succeeds, or counts on one machine only. So the lock file is a claim as well: made once
(O_EXCL), it names the process that holds it, and is taken over only where that is provably gone: a
process of this machine that has ended, or one elsewhere that has stopped renewing its claim.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Self

from adaptool.store.journal import parse_record, read_regular

# A claim is one padded line, so that writing it leaves the second line, the publication, alone.
CLAIM_BYTES = 1024
RENEW_SECONDS = 10.0
# A holder elsewhere that was silent for so long is watched for some renewals, then taken for gone.
LEASE_SECONDS = 60.0
_WATCHED_RENEWALS = 2.5
_WATCHES = 10
_STATE, _START = 0, 19  # fields of /proc/PID/stat after the name: proc(5), numbers 3 and 22


@dataclass(frozen=True, slots=True)
class Claim:
    """One run's hold of an output; `nonce` tells it from every other.

    `place` is the digest of what pids are valid in (machine, boot, pid namespace), `host` its name
    for people, `started` when the kernel started process `pid`, `plan` the plan's digest. Without
    a nonce nobody holds the output.
    """

    nonce: str
    place: str
    host: str
    pid: int
    started: str
    plan: str

    @classmethod
    def of_this_process(cls, plan: str) -> Self:
        """A new claim for this process."""
        pid = os.getpid()
        _, started = _process(pid)
        host = os.uname().nodename[:40]
        return cls(secrets.token_hex(16), _place(), host, pid, started, plan[:64])

    def released(self) -> bytes:
        """The line of an output that nobody holds any more."""
        return _line({})

    def encoded(self) -> bytes:
        """The line that says so."""
        return _line(asdict(self))

    @property
    def is_here(self) -> bool:
        """Whether its process is one of this machine, seen by the same numbers."""
        return self.place == _place()

    @property
    def is_running(self) -> bool:
        """Whether its process, which is one of here, still runs; a number may be in use again."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        state, started = _process(self.pid)
        return state != "Z" and started == self.started


def claim_at(path: Path) -> Claim | None:
    """What the lock file at `path` says of its holder; None where nothing can be understood."""
    record = parse_record(read_regular(path)[:CLAIM_BYTES])
    if record is None:
        return None
    try:
        texts = {name: str(record[name]) for name in ("nonce", "place", "host", "started", "plan")}
        return Claim(pid=int(record["pid"]), **texts)
    except (KeyError, TypeError, ValueError):
        return None


def is_free(path: Path) -> bool:
    """Whether the lock file at `path` says that its holder let go."""
    return parse_record(read_regular(path)[:CLAIM_BYTES]) == {}


def is_gone(claim: Claim | None, path: Path, *, locks_hold: bool) -> bool:
    """Whether the holder of the lock file at `path` is provably gone.

    `claim` is what it wrote, None for nothing yet. `locks_hold` says that the kernel's lock, which
    was just taken, is one: on this machine nobody else can hold it then.
    """
    if claim is None:
        return locks_hold or _is_silent(path)
    if claim.is_here:
        return locks_hold or not claim.is_running
    return _is_silent(path)


def _is_silent(path: Path) -> bool:
    """Whether the lock file was not renewed for a lease, and is not while it is watched.

    Its time is that of the file system, which may be off from this machine's: so only what changes
    while it is watched proves anything, and the difference merely saves the wait.
    """
    first = _renewed(path)
    if first is None:
        return False
    if abs(time.time() - first) < LEASE_SECONDS:
        return False
    for _ in range(_WATCHES):
        time.sleep(RENEW_SECONDS * _WATCHED_RENEWALS / _WATCHES)
        if _renewed(path) != first:
            return False
    return True


def _renewed(path: Path) -> float | None:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return None


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record, sort_keys=True).encode("ascii").ljust(CLAIM_BYTES - 1) + b"\n"


def _process(pid: int) -> tuple[str, str]:
    """State and start of a process, from proc(5); empty where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "", ""
    return fields[_STATE].decode("ascii"), fields[_START].decode("ascii")


@cache
def _place() -> str:
    """What tells this machine, since it was started, and its pid namespace from all others."""
    facts = (os.uname().nodename, _boot(), _pid_namespace())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
