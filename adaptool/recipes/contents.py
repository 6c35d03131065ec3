"""What lies at a path, as a digest: as much of it as is worth reading for every rerun.

Files up to 64 MiB count with every byte (sha256). Of larger ones the header and 16 blocks are
read, as receipts do it of a base's shards (`store/digest.py`): another file is found, one bit that
flipped in between is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from adaptool.store.digest import digest_of_bytes, fingerprint, sha256_of
from adaptool.store.local import LocalSource
from adaptool.store.occupied import files_under

MOST_READ_WHOLE = 64 * 1024 * 1024
ABSENT = "absent"
# What belongs to a checkout or a cache, not to the artifact.
_ASIDE = frozenset({".git", ".cache"})


@dataclass(frozen=True, slots=True)
class Contents:
    """Digests of local files and directories, each taken once until it is `changed`."""

    known: dict[str, str] = field(default_factory=dict)

    def of(self, path: str) -> str:
        """The digest of the file or of the directory with all its files; "absent" for neither.

        OutputError (exit 5) for what cannot be read.
        """
        if path not in self.known:
            self.known[path] = _digest(Path(path))
        return self.known[path]

    def changed(self) -> None:
        """Forget what was read: something was written."""
        self.known.clear()


def _digest(path: Path) -> str:
    if not path.is_dir():
        return _of_file(path) if path.exists() else ABSENT
    # A link to a file counts as the file (the Hub's cache is made of links).
    names = [name for name, _ in files_under(path, skip=_ASIDE) if (path / name).is_file()]
    rows = [[name, _of_file(path / name)] for name in names]
    return "directory:" + digest_of_bytes(json.dumps(rows).encode())


def _of_file(path: Path) -> str:
    with LocalSource(path) as source:
        if source.size > MOST_READ_WHOLE:
            return f"fingerprint:{fingerprint(source)}"
        return f"sha256:{sha256_of(source)}"
