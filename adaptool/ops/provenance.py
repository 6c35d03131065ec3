"""What the receipt says of a merge's inputs and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptool.model.adapter import Adapter
from adaptool.model.options import MergeOptions
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.addresses import on_the_hub
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.digest import digest_of_bytes, fingerprint, known_sha256, sha256_of
from adaptool.store.journal import read_record
from adaptool.store.model_card import carried_front
from adaptool.store.own_files import RECEIPT
from adaptool.store.safe_names import printable
from adaptool.store.source import Source


def inputs_of(
    base: Checkpoint, adapters: Sequence[tuple[AdapterFiles, Adapter, float]]
) -> tuple[Mapping[str, Any], ...]:
    """Names without their folders, digests of adapters and configs, fingerprints of shards."""
    return (base_input(base), *(adapter_input(*adapter) for adapter in adapters))


def base_input(base: Checkpoint, role: str = "base") -> Mapping[str, Any]:
    """A checkpoint as a receipt lists it."""
    config = base.config_bytes
    return {
        "role": role,
        "name": Path(base.name).resolve().name,
        "config_sha256": digest_of_bytes(config) if config is not None else None,
        "shards": [
            {
                "name": printable(shard.file),
                "bytes": shard.source.size,
                **_identity(shard.source),
            }
            for shard in base.shards
        ],
        **_card(Path(base.name)),
        **pulled_from(Path(base.name) if Path(base.name).is_dir() else Path(base.name).parent),
    }


def _identity(shard: Source) -> dict[str, str]:
    """The commit's own sha256 of a shard on the Hub, a fingerprint of a local one."""
    known = known_sha256(shard)
    return {"fingerprint": fingerprint(shard)} if known is None else {"sha256": known}


def adapter_input(files: AdapterFiles, adapter: Adapter, weight: float = 1.0) -> Mapping[str, Any]:
    """One adapter as a receipt lists it."""
    return {
        "role": "adapter",
        "name": printable(Path(files.name).resolve().name),
        "weight": weight,
        "bytes": files.source.size,
        "sha256": sha256_of(files.source),
        "config_sha256": files.config_sha256,
        "layout": adapter.layout,
        **_base_name(adapter),
        **_card(Path(files.name)),
        **pulled_from(files.path.parent),
    }


def _base_name(adapter: Adapter) -> Mapping[str, str]:
    """What the adapter calls its base, where that can be a repository's name and no path."""
    name = adapter.base or ""
    return {"base": printable(name)} if "/" in name and on_the_hub(name) else {}


def _card(root: Path) -> Mapping[str, Any]:
    """What the card beside an input says that is carried over to the card of the output."""
    found = carried_front(root)
    return {"card": dict(found)} if found else {}


def pulled_from(root: Path) -> Mapping[str, Any]:
    """Address and commit of what `adaptool pull` put into `root`; empty where it did not."""
    receipt = read_record(root / RECEIPT)
    pulled = receipt.get("pulled") if receipt is not None else None
    if not isinstance(pulled, dict):
        return {}
    return {key: printable(str(pulled[key])) for key in ("uri", "commit") if key in pulled}


def recorded_options(weights: Sequence[float], options: MergeOptions) -> dict[str, Any]:
    """The options that decide bytes, as verify and unmerge read them back."""
    return {"weights": list(weights), **options.as_json()}
