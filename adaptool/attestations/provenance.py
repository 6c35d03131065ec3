"""How an output was made, as an in-toto Statement with SLSA's provenance; unsigned.

Sources: in-toto Attestation Framework, spec/v1/statement.md and resource_descriptor.md; SLSA
provenance v1 (slsa.dev/provenance/v1). No clock stands in it, nor who ran it where: the same
receipt gives the same bytes. Whoever signs it says the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adaptool.attestations.materials import PACKAGE, Material, Receipt, materials

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"


def provenance(receipt: Receipt) -> Mapping[str, Any]:
    """The Statement as a JSON object; its subjects are the outputs of `receipt` that have digests.

    externalParameters are what was asked for (command, options), internalParameters what adaptool
    decided (ties, drops), resolvedDependencies the inputs' files.
    """
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": entry["name"], "digest": {"sha256": entry["sha256"]}}
            for entry in receipt["outputs"]
            if entry.get("sha256")
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                # It leads to the page that explains the commands, as SLSA asks for.
                "buildType": f"{PACKAGE}/#{receipt['command']}-1",
                "externalParameters": {
                    "command": receipt["command"],
                    "options": receipt.get("options", {}),
                },
                "internalParameters": {"decisions": receipt.get("decisions", {})},
                "resolvedDependencies": [
                    descriptor
                    for material in materials(receipt)
                    for descriptor in _dependencies(material)
                ],
            },
            "runDetails": {
                "builder": {"id": f"{PACKAGE}/", "version": receipt.get("versions", {})},
            },
        },
    }


def _dependencies(material: Material) -> Iterator[Mapping[str, Any]]:
    """The repository at its commit, then each file: a DigestSet is of one thing."""
    place = f"{material.role}/{material.name}"
    marks = {} if material.weight is None else {"annotations": {"weight": material.weight}}
    if material.pinned is not None:
        commit = {"digest": {"gitCommit": material.commit}} if material.commit else {}
        yield {"name": place, "uri": material.pinned, **commit}
    for file in material.files:
        yield {"name": f"{place}/{file.name}", "digest": dict(file.digest), **marks}
