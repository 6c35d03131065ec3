"""The plan of an adapter to be written: rows that only copy what their sources make.

The same engine, staging and receipt as for a model; NaN and infinities are refused on their way.
Tensors that come out of one computation are
rows far enough apart that several workers find work, and near enough that few results are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptool.findings import Finding
from adaptool.model.encoding import Encoded
from adaptool.model.finite import finite
from adaptool.model.options import Precision
from adaptool.model.plan import Document, OutputFile, Plan, Row
from adaptool.store.header import tensor_bytes

# Modules whose rows stand together: as many workers can compute at once.
WAVE_MODULES = 16
WAVE_BYTES = 256 * 1024 * 1024


def adapter_plan(
    encoded: Encoded,
    *,
    inputs: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    decisions: Mapping[str, Any],
    companions: Iterable[Path] = (),
    findings: tuple[Finding, ...] = (),
) -> Plan:
    """Rows, file and documents of an encoded adapter; `companions` are files copied along."""
    rows = [
        Row(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.ref.shape,
            file=encoded.file,
            offset=offset,
            length=tensor_bytes(tensor.dtype, tensor.ref.shape),
            source=tensor.ref,
        )
        for tensor, offset in zip(encoded.tensors, encoded.offsets, strict=True)
    ]
    copied = [Document(path.name, copy_of=path) for path in companions]
    return Plan(
        rows=tuple(replace(row, source=finite(row.source)) for row in _in_waves(rows)),
        files=(OutputFile(encoded.file, encoded.header, encoded.size),),
        documents=(*encoded.documents, *copied),
        precision=Precision.FLOAT64,
        findings=(*findings, *encoded.findings),
        decisions=decisions,
        inputs=tuple(inputs),
        options=options,
    )


def _in_waves(rows: Sequence[Row]) -> list[Row]:
    """Per wave the first tensor of each computation, then the second of each, and so on."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        source = row.source.source
        groups.setdefault(id(getattr(source, "job", source)), []).append(row)
    ordered: list[Row] = []
    wave: list[list[Row]] = []
    size = 0
    for group in groups.values():
        wave.append(group)
        size += sum(row.length for row in group)
        if len(wave) == WAVE_MODULES or size >= WAVE_BYTES:
            ordered += _interleaved(wave)
            wave, size = [], 0
    return ordered + _interleaved(wave)


def _interleaved(wave: Sequence[Sequence[Row]]) -> list[Row]:
    longest = max(map(len, wave), default=0)
    return [group[place] for place in range(longest) for group in wave if place < len(group)]
