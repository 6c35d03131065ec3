"""Judges of provenance and BOMs: the definitions of those who made the formats."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement


def check_statement(body: Mapping[str, Any]) -> None:
    """Parses it by in-toto's own protobuf definitions, unknown fields refused, and validates it."""
    message = json_format.ParseDict(dict(body), statement_pb2.Statement())
    statement = Statement([], "", {})
    statement.pb.CopyFrom(message)
    statement.validate()
    assert body["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = json_format.ParseDict(dict(body["predicate"]), Provenance())
    # SLSA provenance v1, "Schema": these are REQUIRED.
    assert re.match(r"https://", predicate.build_definition.build_type)
    assert predicate.build_definition.external_parameters.fields
    assert re.match(r"https://", predicate.run_details.builder.id)
    for found in predicate.build_definition.resolved_dependencies:
        descriptor = ResourceDescriptor()
        descriptor.pb.CopyFrom(found)
        descriptor.validate()


def check_bom(body: Mapping[str, Any]) -> None:
    """Validates it with the JSON schema of CycloneDX 1.6, strict: unknown keys are refused."""
    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(body))
    assert found is None, found
    refs = list(_refs(body))
    assert len(refs) == len(set(refs)), "every bom-ref is used once"
    known = {each["ref"] for each in body["dependencies"]}
    assert {ref for each in body["dependencies"] for ref in each.get("dependsOn", ())} <= known
    assert known <= set(refs)


def _refs(body: object) -> Any:
    if isinstance(body, Mapping):
        if "bom-ref" in body:
            yield body["bom-ref"]
        for inner in body.values():
            yield from _refs(inner)
    elif isinstance(body, list):
        for inner in body:
            yield from _refs(inner)
