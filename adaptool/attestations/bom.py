"""What an output consists of, as a CycloneDX 1.6 bill of materials for machine learning.

Source: the JSON schema of CycloneDX 1.6 (ECMA-424), `machine-learning-model` components with
`pedigree` and `modelCard`. No clock stands in it; the serial number follows from the receipt, so
the same receipt gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptool.attestations.materials import Material, Receipt, materials
from adaptool.store.digest import digest_of_bytes

_OUTPUT = "output"
Component = Mapping[str, Any]


def bom(receipt: Receipt, name: str) -> Mapping[str, Any]:
    """The BOM as a JSON object; `name` is what the output is called.

    The output is the subject (`metadata.component`), its files are parts of it, the inputs are
    components that it depends on and descends from.
    """
    inputs = [_input(place, material) for place, material in enumerate(materials(receipt), start=1)]
    version = str(receipt.get("versions", {}).get("adaptool", "unknown"))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial(receipt, name)}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "adaptool", "version": version}]
            },
            "component": _output(receipt, name, inputs),
        },
        "components": inputs,
        "dependencies": [
            {"ref": _OUTPUT, "dependsOn": [each["bom-ref"] for each in inputs]},
            *({"ref": each["bom-ref"]} for each in inputs),
        ],
    }


def _serial(receipt: Receipt, name: str) -> uuid.UUID:
    text = json.dumps([name, receipt], sort_keys=True, ensure_ascii=True)
    return uuid.uuid5(uuid.NAMESPACE_URL, f"adaptool:{digest_of_bytes(text.encode())}")


def _output(receipt: Receipt, name: str, inputs: Sequence[Component]) -> Component:
    ancestors = [
        {key: each[key] for key in ("type", "name", "purl") if key in each} for each in inputs
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": _OUTPUT,
        "name": name,
        "description": f"made by adaptool {receipt['command']}",
        "pedigree": {"ancestors": ancestors},
        "modelCard": {"quantitativeAnalysis": {"performanceMetrics": list(_metrics(receipt))}},
        "components": [
            _file(f"{_OUTPUT}/{entry['name']}", entry["name"], entry.get("sha256"))
            for entry in receipt["outputs"]
        ],
        "properties": list(_options(receipt)),
    }


def _metrics(receipt: Receipt) -> Iterator[Mapping[str, str]]:
    """What the run measured: shares of bytes that changed, of the delta that was kept."""
    for name, value in receipt.get("stats", {}).items():
        if isinstance(value, float):
            yield {"type": f"adaptool:{name}", "value": repr(value)}


def _options(receipt: Receipt) -> Iterator[Mapping[str, str]]:
    for name, value in sorted(receipt.get("options", {}).items()):
        yield {"name": f"adaptool:option:{name}", "value": json.dumps(value, sort_keys=True)}


def _input(place: int, material: Material) -> Component:
    ref = f"input-{place}"
    # The package-URL type `huggingface` wants the commit as its version.
    pinned = material.repo is not None and material.commit is not None
    marks = [("role", material.role), ("uri", material.uri), ("weight", material.weight)]
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": material.name,
        **({"version": material.commit} if material.commit else {}),
        **({"purl": f"pkg:huggingface/{material.repo}@{material.commit}"} if pinned else {}),
        "components": [
            _file(f"{ref}/{file.name}", file.name, file.sha256, file.fingerprint)
            for file in material.files
        ],
        "properties": [
            {"name": f"adaptool:{name}", "value": str(value)}
            for name, value in marks
            if value is not None
        ],
    }


def _file(ref: str, name: str, sha256: str | None, fingerprint: str | None = None) -> Component:
    """Without a sha256 there is no hash that CycloneDX knows: the fingerprint is a property."""
    found: dict[str, Any] = {"type": "file", "bom-ref": ref, "name": name}
    if sha256 is not None:
        found["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    if fingerprint is not None:
        found["properties"] = [{"name": "adaptool:fingerprint", "value": fingerprint}]
    return found
