"""What a model card says: from headers and from the receipt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adaptool.model.plan import Plan
from adaptool.model.results import AdapterSummary, CheckpointSummary
from adaptool.ops.inspect import inspect_paths
from adaptool.ops.planned import planned_summary
from adaptool.remote.card import Facts, Table, Value
from adaptool.remote.uri import HubUri
from adaptool.store.addresses import is_address, on_the_hub
from adaptool.store.checkpoint import CONFIG_FILE
from adaptool.store.disk import amount
from adaptool.store.journal import read_record
from adaptool.store.own_files import RECEIPT

_LIBRARIES = {"peft": "peft", "diffusers": "diffusers", "mlx": "mlx"}
_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Described:
    """An artifact as its headers and its receipt describe it."""

    summary: AdapterSummary | CheckpointSummary
    receipt: Mapping[str, Any]

    @classmethod
    def at(cls, root: Path) -> Self:
        """The adapter or model at `root`, a directory or one file."""
        (summary,) = inspect_paths([root], values=None, base=None).items
        receipt = read_record(root / RECEIPT) if root.is_dir() else None
        return cls(summary, receipt or {})

    @classmethod
    def planned(cls, plan: Plan, folder: Path) -> Self:
        """The model that `plan` wrote, with the small files of it that lie in `folder`."""
        config = read_record(folder / CONFIG_FILE)
        return cls(planned_summary(plan, config), read_record(folder / RECEIPT) or {})

    def facts(self, repo: str) -> Facts:
        """What the card in repository `repo` says."""
        tables = [
            Table("", ("", ""), [*_rows(self.summary)]),
            Table("How it was made", ("", ""), [*self._recipe()]),
            Table("Inputs", ("", "name", "weight", "identity"), [*self._input_rows()]),
            Table("Options", ("option", "value"), [*_option_rows(self.receipt.get("options"))]),
            Table("Measured", ("", ""), [*_stats_rows(self.receipt.get("stats"))]),
        ]
        return Facts(self._front(), repo.rpartition("/")[2], tables)

    def _front(self) -> dict[str, Value]:
        if isinstance(self.summary, AdapterSummary):
            return self._adapter_front(self.summary)
        return self._model_front()

    def _adapter_front(self, summary: AdapterSummary) -> dict[str, Value]:
        front: dict[str, Value] = {}
        base = _public(summary.base) or next(iter(self._repos("base")), None)
        if base is not None:
            front = {"base_model": base, "base_model_relation": "adapter"}
        if summary.layout in _LIBRARIES:
            front["library_name"] = _LIBRARIES[summary.layout]
        tags = sorted(summary.tuners)
        return {**front, **self._carried("adapter"), "tags": tags}

    def _model_front(self) -> dict[str, Value]:
        merged = self.receipt.get("command") == "merge"
        front: dict[str, Value] = {}
        if merged:
            front |= self._lineage()
        front["library_name"] = "transformers"
        return {**front, **self._carried("base"), "tags": ["merge"] if merged else []}

    def _lineage(self) -> dict[str, Value]:
        """The base and the adapters, as far as the Hub knows them.

        The base's name is where it was pulled from, else what the adapters call it.
        """
        told = (_public(str(each.get("base") or "")) for each in self._inputs("adapter"))
        bases = [*self._repos("base"), *(name for name in told if name is not None)][:1]
        names = list(dict.fromkeys([*bases, *self._repos("adapter")]))
        if not names:
            return {}
        several = len(self._inputs("adapter")) > 1
        relation = "merge" if several else "finetune"
        return {
            "base_model": names if len(names) > 1 else names[0],
            "base_model_relation": relation,
        }

    def _carried(self, role: str) -> Mapping[str, str]:
        """Licence and task of the inputs in this role, where all of them say the same."""
        cards = [each.get("card") for each in self._inputs(role)]
        if not cards or any(card != cards[0] for card in cards) or not isinstance(cards[0], dict):
            return {}
        return {str(key): str(value) for key, value in cards[0].items()}

    def _inputs(self, role: str) -> list[Mapping[str, Any]]:
        listed = self.receipt.get("inputs")
        rows = listed if isinstance(listed, list) else []
        return [row for row in rows if isinstance(row, dict) and row.get("role") == role]

    def _repos(self, role: str) -> Iterator[str]:
        """The repositories that the inputs in this role were pulled from."""
        for each in self._inputs(role):
            address = str(each.get("uri") or "")
            if is_address(address):
                yield HubUri.parse(address).repo

    def _recipe(self) -> Iterator[tuple[str, str]]:
        command, versions = self.receipt.get("command"), self.receipt.get("versions")
        if isinstance(command, str):
            yield "made by", f"adaptool {command}"
        for name, version in (versions if isinstance(versions, dict) else {}).items():
            if version != "unknown":
                yield str(name), str(version)

    def _input_rows(self) -> Iterator[tuple[str, str, str, str]]:
        for role in ("base", "tuned", "merged", "adapter"):
            for each in self._inputs(role):
                weight = each.get("weight")
                shown = f"{weight:.6g}" if isinstance(weight, float | int) else ""
                yield role, str(each.get("name") or ""), shown, _identity(each)


def _public(name: str | None) -> str | None:
    """A base's name, where it is a repository's; what is a path of this machine stays here."""
    known = name is not None and "/" in name and on_the_hub(name) and not Path(name).exists()
    return name if known else None


def _identity(entry: Mapping[str, Any]) -> str:
    """Address and commit, else a digest."""
    uri, commit = entry.get("uri"), str(entry.get("commit") or "")
    if isinstance(uri, str):
        return f"{uri} at {commit[:_SHOWN_DIGITS]}" if commit else uri
    for key in ("sha256", "config_sha256"):
        if entry.get(key):
            return f"{key} {str(entry[key])[:_SHOWN_DIGITS]}"
    return ""


def _rows(summary: AdapterSummary | CheckpointSummary) -> Iterator[tuple[str, str]]:
    if isinstance(summary, AdapterSummary):
        yield from _adapter_rows(summary)
    else:
        yield from _model_rows(summary)


def _adapter_rows(summary: AdapterSummary) -> Iterator[tuple[str, str]]:
    span = {str(summary.ranks[end]) for end in ("min", "max") if summary.ranks.get(end)}
    yield "layout", summary.layout
    yield "tuners", ", ".join(f"{name} ({count})" for name, count in summary.tuners.items())
    yield "ranks", " to ".join(sorted(span, key=int)) or "none"
    yield "targets", ", ".join(sorted(summary.targets))
    yield "parameters", str(summary.parameters)
    yield "size", amount(summary.bytes)


def _model_rows(summary: CheckpointSummary) -> Iterator[tuple[str, str]]:
    yield "architecture", summary.architecture or "unknown"
    yield "parameters", str(summary.parameters)
    yield "size", f"{amount(summary.bytes)} in {len(summary.shards)} files"
    yield "dtypes", ", ".join(sorted(summary.dtypes))
    yield "quantization", summary.quantization or "none"


def _option_rows(options: object) -> Iterator[tuple[str, str]]:
    """What was chosen; options that were left out say nothing."""
    for name, value in (options if isinstance(options, dict) else {}).items():
        if value is None or value is False or value == []:
            continue
        yield str(name), value if isinstance(value, str) else json.dumps(value)


def _stats_rows(stats: object) -> Sequence[tuple[str, str]]:
    found = stats if isinstance(stats, dict) else {}
    return [
        (str(name).replace("_", " "), f"{value:.6g}")
        for name, value in found.items()
        if isinstance(value, float)
    ]
