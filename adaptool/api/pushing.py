"""The verb that sends an artifact to the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptool.api.door import Progress
from adaptool.errors import InputError, gathered
from adaptool.findings import Finding, Severity
from adaptool.model.hub_results import PushResult
from adaptool.model.receipt import RECEIPT, OutputEntry
from adaptool.model.results import AdapterSummary, CheckpointSummary
from adaptool.ops.inspect import inspect_paths
from adaptool.ops.validate import validate_path
from adaptool.remote.card import Facts, completed, on_the_hub
from adaptool.remote.download import fetch_document
from adaptool.remote.hub import client
from adaptool.remote.outgoing import CARD, Outgoing, outgoing
from adaptool.remote.upload import Target, push_files, refuse_mixture, target
from adaptool.remote.uri import HubUri
from adaptool.store.disk import amount
from adaptool.store.journal import read_record

_LARGEST_CARD = 4 << 20
_LIBRARIES = {"peft": "peft", "diffusers": "diffusers", "mlx": "mlx"}


def push(
    path: Path | str,
    uri: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PushResult:
    """Send the adapter or model at `path` to `hf://owner/name[@branch][/folder]`, in one commit.

    Before the network is touched: InputError (exit 3) for what `validate` calls an error, for
    pickles, access tokens and stray files. Then RemoteError (exit 6) where the Hub refuses or the
    branch moved. The repository is made where there is none. `create_pr` proposes the commit.
    """
    place, root = HubUri.parse(uri), Path(path)
    findings = _validated(root)
    files = outgoing(root)
    facts = _facts(root, place.repo)
    if dry_run:
        files = files if place.folder else _with_card(files, _local_card(files), facts)
        return PushResult(place.repo, None, None, _entries(files), findings, dry_run=True)
    _local_card_checked(files, facts)
    goal = target(client(), place, private=private, create_pr=create_pr)
    refuse_mixture(goal, files)
    if not place.folder:
        files = _with_card(files, _local_card(files) or _their_card(goal), facts)
    total = sum(file.size for file in files)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    pushed = push_files(goal, files, message or f"Push {facts.title} with adaptool", count)
    return PushResult(place.repo, pushed.commit, pushed.url, _entries(files), findings)


def _validated(root: Path) -> tuple[Finding, ...]:
    """What there is to remark; an error among it is raised."""
    findings = validate_path(root, base=None, values=None)
    errors = [
        InputError(
            each.message,
            code=each.code,
            file=each.file,
            tensor=each.tensor,
            field=each.field,
            hint=each.hint,
        )
        for each in findings
        if each.severity is Severity.ERROR
    ]
    if errors:
        raise gathered(errors)
    return findings


def _entries(files: Sequence[Outgoing]) -> tuple[OutputEntry, ...]:
    return tuple(OutputEntry(file.name, file.size, file.sha256) for file in files)


def _local_card(files: Sequence[Outgoing]) -> str | None:
    """The card beside the weights."""
    for file in files:
        if file.name == CARD and isinstance(file.content, Path):
            return file.content.read_text(encoding="utf-8", errors="replace")
    return None


def _local_card_checked(files: Sequence[Outgoing], facts: Facts) -> None:
    """What is wrong with it is said before the network is touched."""
    completed(_local_card(files), facts)


def _their_card(goal: Target) -> str | None:
    """The card that stands in the repository."""
    theirs = goal.files.get(CARD)
    if theirs is None:
        return None
    raw = fetch_document(goal.origin, theirs, limit_bytes=_LARGEST_CARD)
    return raw.decode("utf-8", errors="replace")


def _with_card(files: Sequence[Outgoing], text: str | None, facts: Facts) -> tuple[Outgoing, ...]:
    card = Outgoing.made(CARD, completed(text, facts).encode())
    others = [file for file in files if file.name != CARD]
    return tuple(sorted([*others, card], key=lambda file: file.name))


def _facts(root: Path, repo: str) -> Facts:
    """What the card says: from headers and from the receipt."""
    (summary,) = inspect_paths([root], values=None, base=None).items
    receipt = (read_record(root / RECEIPT) if root.is_dir() else None) or {}
    title = repo.rpartition("/")[2]
    if isinstance(summary, AdapterSummary):
        return Facts(_adapter_front(summary), title, [*_adapter_rows(summary), *_recipe(receipt)])
    tags = ["merge"] if receipt.get("command") == "merge" else []
    front = {"library_name": "transformers", "tags": tags}
    return Facts(front, title, [*_model_rows(summary), *_recipe(receipt)])


def _adapter_front(summary: AdapterSummary) -> Mapping[str, str | Sequence[str]]:
    front: dict[str, str | Sequence[str]] = {}
    base = summary.base or ""
    # What is a path on the machine that trained it is nobody else's business.
    if "/" in base and on_the_hub(base) and not Path(base).exists():
        front = {"base_model": base, "base_model_relation": "adapter"}
    if summary.layout in _LIBRARIES:
        front["library_name"] = _LIBRARIES[summary.layout]
    return {**front, "tags": sorted(summary.tuners)}


def _adapter_rows(summary: AdapterSummary) -> list[tuple[str, str]]:
    span = {str(summary.ranks[end]) for end in ("min", "max") if summary.ranks.get(end)}
    return [
        ("layout", summary.layout),
        ("tuners", ", ".join(f"{name} ({count})" for name, count in summary.tuners.items())),
        ("ranks", " to ".join(sorted(span, key=int)) or "none"),
        ("targets", ", ".join(sorted(summary.targets))),
        ("parameters", str(summary.parameters)),
        ("size", amount(summary.bytes)),
    ]


def _model_rows(summary: CheckpointSummary) -> list[tuple[str, str]]:
    dtypes = ", ".join(sorted(summary.dtypes))
    return [
        ("architecture", summary.architecture or "unknown"),
        ("parameters", str(summary.parameters)),
        ("size", f"{amount(summary.bytes)} in {len(summary.shards)} files"),
        ("dtypes", dtypes),
        ("quantization", summary.quantization or "none"),
    ]


def _recipe(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was made, as the receipt beside it says."""
    rows = []
    if isinstance(receipt.get("command"), str):
        rows.append(("made by", f"adaptool {receipt['command']}"))
    inputs = receipt.get("inputs")
    for each in inputs if isinstance(inputs, list) else []:
        if isinstance(each, dict) and isinstance(each.get("name"), str):
            digest = str(each.get("sha256") or each.get("config_sha256") or "")
            rows.append((f"{each.get('role', 'input')}", f"{each['name']} {digest[:12]}".strip()))
    stats = receipt.get("stats")
    for name, value in (stats if isinstance(stats, dict) else {}).items():
        if isinstance(value, float):
            rows.append((name.replace("_", " "), f"{value:.6g}"))
    return rows
