"""Provenance and BOM of a receipt, judged by the formats' own definitions."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from adaptool.attestations.bom import bom
from adaptool.attestations.materials import materials
from adaptool.attestations.provenance import provenance
from adaptool.store.addresses import at_commit
from attestation_judges import check_bom, check_statement

COMMIT = "3f" * 20
RECEIPT: dict[str, Any] = {
    "schema": 1,
    "command": "merge",
    "options": {"weights": [1.0, 0.5], "dtype": "keep", "tie": "untie"},
    "inputs": [
        {
            "role": "base",
            "name": "tiny",
            "config_sha256": "a1" * 32,
            "shards": [
                {"name": "model-1.safetensors", "bytes": 10, "fingerprint": "b2" * 32},
                {"name": "model-2.safetensors", "bytes": 10, "sha256": "c3" * 32},
            ],
        },
        {
            "role": "adapter",
            "name": "style",
            "weight": 1.0,
            "bytes": 10,
            "sha256": "d4" * 32,
            "config_sha256": None,
            "layout": "kohya",
        },
        {
            "role": "adapter",
            "name": "style",
            "weight": 0.5,
            "bytes": 10,
            "sha256": "e5" * 32,
            "config_sha256": "f6" * 32,
            "layout": "peft",
            "uri": "hf://me/style@main/inner",
            "commit": COMMIT,
        },
    ],
    "outputs": [
        {"name": "config.json", "bytes": 3, "sha256": "07" * 32},
        {"name": "model.safetensors", "bytes": 3, "sha256": "18" * 32},
    ],
    "versions": {"adaptool": "0.1.0", "torch": "2.13.0"},
    "tensors": {"total": 2, "touched": 1, "copied": 1},
    "decisions": {"ties": []},
    "stats": {"changed_fraction": 0.98, "retained": None},
}


def test_statement_is_valid() -> None:
    """in-toto's protobuf definitions and SLSA's required fields."""
    check_statement(provenance(RECEIPT))


def test_judge_of_statements_can_say_no() -> None:
    """A field that the format does not know, a subject without a digest, no subject at all."""
    body: Any = copy.deepcopy(provenance(RECEIPT))
    body["predicate"]["runDetails"]["host"] = "x"
    with pytest.raises(Exception, match="host"):
        check_statement(body)
    body = copy.deepcopy(provenance(RECEIPT))
    body["subject"][0]["digest"] = {}
    with pytest.raises(ValueError, match="digest"):
        check_statement(body)
    with pytest.raises(ValueError, match="subject"):
        check_statement({**body, "subject": []})


def test_statement_says_what_was_made_of_what() -> None:
    """Outputs by sha256; inputs by sha256, commit, or the fingerprint where there is no other."""
    body = provenance(RECEIPT)
    assert body["subject"] == [
        {"name": "config.json", "digest": {"sha256": "07" * 32}},
        {"name": "model.safetensors", "digest": {"sha256": "18" * 32}},
    ]
    definition = body["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"command": "merge", "options": RECEIPT["options"]}
    one, half = {"annotations": {"weight": 1.0}}, {"annotations": {"weight": 0.5}}
    assert definition["resolvedDependencies"] == [
        {"name": "base/tiny/config.json", "digest": {"sha256": "a1" * 32}},
        {
            "name": "base/tiny/model-1.safetensors",
            "digest": {"adaptoolFingerprint1": "b2" * 32},
        },
        {"name": "base/tiny/model-2.safetensors", "digest": {"sha256": "c3" * 32}},
        {"name": "adapter/style/weights", "digest": {"sha256": "d4" * 32}, **one},
        {
            "name": "adapter/style",
            "uri": f"hf://me/style@{COMMIT}/inner",
            "digest": {"gitCommit": COMMIT},
        },
        {
            "name": "adapter/style/adapter_config.json",
            "digest": {"sha256": "f6" * 32},
            **half,
        },
        {"name": "adapter/style/weights", "digest": {"sha256": "e5" * 32}, **half},
    ]


def test_output_without_a_digest_is_no_subject() -> None:
    """A subject is what its digest says; a name alone attests nothing."""
    bare = {**RECEIPT, "outputs": [{"name": "config.json", "bytes": 3}]}
    assert provenance(bare)["subject"] == []


def test_bom_is_valid() -> None:
    """CycloneDX's own schema, and references that lead somewhere."""
    check_bom(bom(RECEIPT, "tiny-styled"))


def test_judge_of_boms_can_say_no() -> None:
    """A key that the schema does not know."""
    with pytest.raises(AssertionError):
        check_bom({**bom(RECEIPT, "x"), "madeBy": "x"})


def test_bom_says_what_the_output_descends_from() -> None:
    """Inputs as components, with hashes where they are known and a package URL from the Hub."""
    body = bom(RECEIPT, "tiny-styled")
    purl = f"pkg:huggingface/me/style@{COMMIT}"
    subject = body["metadata"]["component"]
    assert (subject["name"], subject["type"]) == ("tiny-styled", "machine-learning-model")
    assert subject["pedigree"]["ancestors"][2] == {
        "type": "machine-learning-model",
        "name": "style",
        "purl": purl,
    }
    hashes = {each["name"]: each["hashes"][0]["content"] for each in subject["components"]}
    assert hashes == {"config.json": "07" * 32, "model.safetensors": "18" * 32}
    base, _, half = body["components"]
    _, first, second = base["components"]
    assert first["properties"] == [{"name": "adaptool:fingerprint", "value": "b2" * 32}]
    assert second["hashes"] == [{"alg": "SHA-256", "content": "c3" * 32}]
    assert (half["purl"], half["version"]) == (purl, COMMIT)
    assert body["dependencies"][0]["dependsOn"] == ["input-1", "input-2", "input-3"]


def test_bom_of_the_same_receipt_is_the_same() -> None:
    """No clock and no chance; another receipt has another serial number."""
    assert bom(RECEIPT, "x") == bom(copy.deepcopy(RECEIPT), "x")
    other = {**RECEIPT, "options": {**RECEIPT["options"], "tie": "keep"}}
    assert bom(other, "x")["serialNumber"] != bom(RECEIPT, "x")["serialNumber"]


def test_address_is_pinned_to_its_commit() -> None:
    """Whatever branch and folder it was pulled from."""
    pinned = f"hf://me/style@{COMMIT}/inner"
    assert [each.pinned for each in materials(RECEIPT)] == [None, None, pinned]


@pytest.mark.parametrize(
    ("address", "pinned"),
    [
        ("hf://me/it", f"hf://me/it@{COMMIT}"),
        ("hf://me/it/a/b", f"hf://me/it@{COMMIT}/a/b"),
        ("hf://me/it@v1.0/a", f"hf://me/it@{COMMIT}/a"),
        ("hf://me/it@refs/pr/1/a", f"hf://me/it@{COMMIT}/a"),
        ("hf://me/it@feature%2Fx", f"hf://me/it@{COMMIT}"),
        ("hf://me/it/a@b", f"hf://me/it@{COMMIT}/a@b"),
    ],
)
def test_commit_takes_the_place_of_the_revision(address: str, pinned: str) -> None:
    """The folder stays: it says which of a repository's artifacts was read."""
    assert at_commit(address, COMMIT) == pinned
