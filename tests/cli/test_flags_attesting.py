"""--checksum, --provenance, --bom: what is said about an output, judged by others' tools."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestation_judges import check_bom, check_statement
from command_line import ADAPTER, BASE
from hub_stand_in import StandIn

Adaptool = Callable[..., Any]
# Files of a commit that are about the others, or the Hub's own.
OURS = {"README.md", "SHA256SUMS", "adaptool.json", ".gitattributes"}


@pytest.fixture
def papers(tmp_path: Path) -> tuple[Path, Path]:
    """Where the statement and the BOM go."""
    return tmp_path / "provenance.json", tmp_path / "bom.json"


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def _check_sums(out: Path) -> None:
    """coreutils agrees, and every file but the two about the others is listed."""
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=out, check=True)
    listed = {row.split("  ", 1)[1] for row in (out / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in out.iterdir()} - {"SHA256SUMS", "adaptool.json"}
    outputs = {entry["name"]: entry["sha256"] for entry in _read(out / "adaptool.json")["outputs"]}
    assert set(outputs) == listed


def _check_papers(out: Path, papers: tuple[Path, Path], command: str) -> None:
    """Both are valid, and name what lies at OUT by its digest."""
    statement, bom = map(_read, papers)
    check_statement(statement)
    check_bom(bom)
    files = [out] if out.is_file() else [*out.iterdir()]
    digests = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name not in {"SHA256SUMS", "adaptool.json"}
    }
    subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert subjects == digests
    parts = bom["metadata"]["component"]["components"]
    assert {each["name"]: each["hashes"][0]["content"] for each in parts} == digests
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["command"] == command
    assert bom["metadata"]["component"]["name"] == out.name


def test_resize_combine_convert_extract_unmerge_checksum(
    adaptool: Adaptool, tmp_path: Path
) -> None:
    """`sha256sum --check` is content with every directory that is written."""
    adaptool("merge", "--checksum", BASE, ADAPTER, tmp_path / "merged")
    adaptool("resize", "--checksum", ADAPTER, tmp_path / "small", "--rank", 2)
    adaptool("combine", "--checksum", ADAPTER, ADAPTER, "-o", tmp_path / "both")
    adaptool("convert", "--checksum", ADAPTER, tmp_path / "mlx", "--to", "mlx")
    adaptool("extract", "--checksum", BASE, tmp_path / "merged", tmp_path / "e", "--rank", 2)
    adaptool("unmerge", "--checksum", tmp_path / "merged", ADAPTER, tmp_path / "back")
    for out in ("merged", "small", "both", "mlx", "e", "back"):
        _check_sums(tmp_path / out)


def test_pull_checksum(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """The digests are those that the commit was checked against; without the flag no file."""
    del hub
    adaptool("pull", "--checksum", "hf://me/adapter", tmp_path / "out")
    _check_sums(tmp_path / "out")
    adaptool("pull", "hf://me/adapter", tmp_path / "bare")
    assert not (tmp_path / "bare" / "SHA256SUMS").exists()


def test_checksum_of_a_single_file_is_exit_2(adaptool: Adaptool, tmp_path: Path) -> None:
    """There is no directory that SHA256SUMS could stand in; nothing is written."""
    for verb in (["resize", "--rank", 2, ADAPTER], ["convert", "--to", "peft", ADAPTER]):
        said = adaptool(*verb, tmp_path / "x.safetensors", "--checksum", code=2)
        assert said["error"]["field"] == "--checksum"
    assert list(tmp_path.iterdir()) == []


def test_merge_provenance_and_bom(
    adaptool: Adaptool, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """Of a model: shards by fingerprint, configs and adapters by sha256."""
    statement, bom = papers
    out = tmp_path / "out"
    adaptool("merge", "--provenance", statement, "--bom", bom, BASE, ADAPTER, out)
    _check_papers(out, papers, "merge")
    _check_sums(out)
    found = _read(statement)["predicate"]["buildDefinition"]["resolvedDependencies"]
    weights = hashlib.sha256((ADAPTER / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert {"sha256": weights} in [each["digest"] for each in found]
    config = hashlib.sha256((ADAPTER / "adapter_config.json").read_bytes()).hexdigest()
    assert {"sha256": config} in [each["digest"] for each in found]
    assert config in bom.read_text()
    recorded = _read(out / "adaptool.json")["inputs"]
    assert [each["config_sha256"] for each in recorded if each["role"] == "adapter"] == [config]
    assert _read(bom)["components"][0]["name"] == "base"


def test_resize_provenance_and_bom(
    adaptool: Adaptool, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """Of an adapter in a directory."""
    statement, bom = papers
    out = tmp_path / "out"
    adaptool("resize", "--provenance", statement, "--bom", bom, ADAPTER, out, "--rank", 2)
    _check_papers(out, papers, "resize")


def test_convert_provenance_and_bom_of_a_single_file(
    adaptool: Adaptool, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """No receipt lies beside a single file, and it is attested all the same."""
    statement, bom = papers
    out = tmp_path / "out.safetensors"
    adaptool("convert", "--provenance", statement, "--bom", bom, ADAPTER, out, "--to", "peft")
    _check_papers(out, papers, "convert")
    assert {path.name for path in tmp_path.iterdir()} == {out.name, statement.name, bom.name}


def test_combine_provenance_and_bom(
    adaptool: Adaptool, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """Two inputs of one name are two, each with its weight."""
    statement, bom = papers
    out = tmp_path / "out"
    weights = ["--weights", "0.75,0.25"]
    adaptool(
        "combine", "--provenance", statement, "--bom", bom, ADAPTER, ADAPTER, "-o", out, *weights
    )
    _check_papers(out, papers, "combine")
    marks = [each["properties"] for each in _read(bom)["components"]]
    assert [{"name": "adaptool:weight", "value": weight} for weight in ("0.75", "0.25")] == [
        mark for each in marks for mark in each if mark["name"] == "adaptool:weight"
    ]


def test_extract_provenance_and_bom(
    adaptool: Adaptool, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """The base and the tuned model are told apart."""
    statement, bom = papers
    out = tmp_path / "out"
    adaptool("merge", BASE, ADAPTER, tmp_path / "tuned")
    pair = [BASE, tmp_path / "tuned", out]
    adaptool("extract", "--provenance", statement, "--bom", bom, *pair, "--rank", 2)
    _check_papers(out, papers, "extract")
    roles = [each["properties"][0]["value"] for each in _read(bom)["components"]]
    assert roles == ["base", "tuned"]


def test_input_from_the_hub_is_named_by_its_commit(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """Whatever branch was asked for."""
    statement, bom = papers
    out = tmp_path / "out"
    pair = ["hf://me/adapter@main", out]
    adaptool("resize", "--provenance", statement, "--bom", bom, *pair, "--rank", 2)
    _check_papers(out, papers, "resize")
    commit = hub.repos["me/adapter"].head
    found = _read(statement)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert found[0]["uri"] == f"hf://me/adapter@{commit}"
    assert found[0]["digest"] == {"gitCommit": commit}
    assert _read(bom)["components"][0]["purl"] == f"pkg:huggingface/me/adapter@{commit}"


def test_base_from_the_hub_is_named_by_its_commit_and_sha256(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """The Hub knows the digest of every shard: no fingerprint is left."""
    statement, bom = papers
    commit = hub.add("me/base", {path.name: path.read_bytes() for path in BASE.iterdir()}).head
    given = ["hf://me/base", ADAPTER, tmp_path / "out", "--provenance", statement, "--bom", bom]
    adaptool("merge", *given)
    _check_papers(tmp_path / "out", papers, "merge")
    found = _read(statement)["predicate"]["buildDefinition"]["resolvedDependencies"]
    digests = {each["name"]: each["digest"] for each in found}
    assert digests["base/base"] == {"gitCommit": commit}
    for shard in BASE.glob("*.safetensors"):
        sha256 = hashlib.sha256(shard.read_bytes()).hexdigest()
        assert digests[f"base/base/{shard.name}"] == {"sha256": sha256}


def test_output_on_the_hub_is_attested(
    adaptool: Adaptool, hub: StandIn, papers: tuple[Path, Path]
) -> None:
    """By the files of the commit, also where each left this machine before the next was made."""
    statement, bom = papers
    for verb, *given in (["merge", BASE, ADAPTER], ["resize", "--rank", 2, ADAPTER]):
        there = f"me/{verb}"
        again = ["--provenance", statement, "--bom", bom, "--overwrite"]
        adaptool(verb, *given, f"hf://{there}", *again)
        check_statement(_read(statement))
        check_bom(_read(bom))
        assert _read(bom)["metadata"]["component"]["name"] == there
        subjects = {each["name"]: each["digest"]["sha256"] for each in _read(statement)["subject"]}
        files = hub.repos[there].files
        assert {name: hashlib.sha256(files[name]).hexdigest() for name in subjects} == subjects
        assert set(files) - set(subjects) == OURS


def test_papers_are_the_same_wherever_they_are_written(adaptool: Adaptool, tmp_path: Path) -> None:
    """No clock, no host, no path: the bytes can be compared between machines."""
    found = []
    for place, threads in (("one", 1), ("two", 2)):
        folder = tmp_path / place
        folder.mkdir()
        given = [BASE, ADAPTER, folder / "out", "--threads", threads]
        adaptool("merge", *given, "--provenance", folder / "p", "--bom", folder / "b")
        found.append(((folder / "p").read_bytes(), (folder / "b").read_bytes()))
    assert found[0] == found[1]
    assert str(tmp_path).encode() not in b"".join(found[0])


def test_paper_that_cannot_be_written_is_refused_first(adaptool: Adaptool, tmp_path: Path) -> None:
    """In OUT, on an input, one file for both, one that exists: nothing is written then."""
    out, there = tmp_path / "out", tmp_path / "there.json"
    there.write_text("mine")
    config = ADAPTER / "adapter_config.json"
    pair = [ADAPTER, out, "--rank", 2]
    inside = adaptool("resize", *pair, "--provenance", out / "p.json", code=2)
    assert inside["error"]["field"] == "--provenance"
    assert adaptool("resize", *pair, "--bom", config, "--overwrite", code=2)
    twice = ["--bom", tmp_path / "x", "--provenance", tmp_path / "x"]
    assert adaptool("resize", *pair, *twice, code=2)["error"]["field"] == "--bom"
    assert adaptool("resize", *pair, "--bom", there, code=5)["error"]["code"] == "output-exists"
    assert adaptool("resize", *pair, "--bom", tmp_path / "no" / "b", code=5)
    assert ([path.name for path in tmp_path.iterdir()], there.read_text()) == (
        ["there.json"],
        "mine",
    )
    adaptool("resize", *pair, "--bom", there, "--overwrite")
    check_bom(_read(there))


def test_dry_run_writes_no_papers(
    adaptool: Adaptool, tmp_path: Path, papers: tuple[Path, Path]
) -> None:
    """Nothing was made that could be attested."""
    statement, bom = papers
    given = ["--provenance", statement, "--bom", bom, "--dry-run"]
    adaptool("merge", BASE, ADAPTER, tmp_path / "out", *given)
    assert list(tmp_path.iterdir()) == []
