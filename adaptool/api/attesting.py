"""What is said about an output beside its receipt: digests, provenance, a bill of materials."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.store.disk import Disk
from adaptool.store.documents import encode_json
from adaptool.store.preflight import preflight
from adaptool.store.safe_names import printable
from adaptool.store.single_file import refuse_directory, write_file


@dataclass(frozen=True, slots=True)
class Attesting:
    """What was asked for: SHA256SUMS in the output, files of their own for the other two."""

    checksum: bool = False
    provenance: Path | None = None
    bom: Path | None = None

    @classmethod
    def of(
        cls,
        *,
        checksum: bool = False,
        provenance: Path | str | None = None,
        bom: Path | str | None = None,
    ) -> Self:
        """From a verb's keyword options."""
        return cls(
            checksum,
            None if provenance is None else Path(provenance),
            None if bom is None else Path(bom),
        )

    @property
    def digests(self) -> bool:
        """Whether the outputs' sha256 are needed: what is attested is named by them."""
        return self.checksum or bool(self._files)

    @property
    def _files(self) -> Mapping[str, Path]:
        named = {"--provenance": self.provenance, "--bom": self.bom}
        return {flag: file for flag, file in named.items() if file is not None}

    def check(
        self, out: Path, inputs: Sequence[Path], disk: Disk, *, overwrite: bool, single_file: bool
    ) -> None:
        """What can be refused before the output is written.

        UsageError (exit 2) for sums beside a single file, and for a file in OUT or in an input;
        OutputError (exit 5) where one exists and may not be replaced, or cannot be written.
        """
        if self.checksum and single_file:
            message = "a single file has no SHA256SUMS beside it"
            hint = "sha256sum prints it; or name a directory"
            raise _refusal(message, out, "--checksum", hint)
        if self.provenance is not None and self.provenance == self.bom:
            message = "is the file of --provenance as well"
            raise _refusal(message, self.provenance, "--bom", "name two files")
        for flag, file in self._files.items():
            _check_outside(file, out, flag)
            refuse_directory(file)
            preflight(file, inputs, overwrite=overwrite, need_bytes=0, disk=disk, single_file=True)

    def write(self, receipt: Mapping[str, Any], name: str, disk: Disk, *, overwrite: bool) -> None:
        """Write the files about the output called `name`, as its receipt says it was made.

        OutputError (exit 5) where that fails; the output itself is published then.
        """
        if self.provenance is not None:
            from adaptool.attestations.provenance import provenance

            body = encode_json(provenance(receipt))
            write_file(self.provenance, body, disk, overwrite=overwrite)
        if self.bom is not None:
            from adaptool.attestations.bom import bom

            write_file(self.bom, encode_json(bom(receipt, name)), disk, overwrite=overwrite)


def _check_outside(file: Path, out: Path, flag: str) -> None:
    place, whole = Path(os.path.realpath(file)), Path(os.path.realpath(out))
    if place == whole or whole in place.parents:
        message = "lies in OUT, which is published whole before it can be attested"
        raise _refusal(message, file, flag, "name a file beside OUT")


def _refusal(message: str, file: Path, flag: str, hint: str) -> UsageError:
    return UsageError(message, code=Code.USAGE, file=printable(str(file)), field=flag, hint=hint)
