"""`*.safetensors.index.json`: which shard holds which tensor, checked against the shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adaptool.errors import MOST_ERRORS, AdaptoolError, InputError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.store.documents import parse_json_object
from adaptool.store.safe_names import check_distinct, check_relative, printable
from adaptool.store.tensors import TensorRef
from adaptool.store.weight_files import WEIGHTS_SUFFIX

WEIGHT_MAP = "weight_map"
METADATA = "metadata"
TOTAL_SIZE = "total_size"
_REBUILD = "download the index again; it must belong to these shards"


@dataclass(frozen=True, slots=True)
class Index:
    """A parsed index; `shards` are the files it names, sorted; `file` is its own name."""

    file: str
    weight_map: Mapping[str, str]
    shards: tuple[str, ...]
    metadata: object


def parse_index(raw: bytes, *, file: str) -> Index:
    """The index in `raw`; InputError where it is malformed or names a file outside its folder."""
    document = parse_json_object(raw, file=file)
    weight_map = _weight_map(document, file)
    shards = tuple(sorted(set(weight_map.values())))
    for shard in shards:
        _check_shard_name(shard, file)
    check_distinct(shards, file=file, field=WEIGHT_MAP)
    return Index(file, MappingProxyType(weight_map), shards, document.get(METADATA))


def check_against_shards(
    index: Index, shards: Mapping[str, Mapping[str, TensorRef]]
) -> list[Finding]:
    """Refuse (InputError) an index that names other tensors than its shards hold.

    `shards`: file -> its tensors. Returns what loaders stumble over but which changes no weight.
    """
    errors = [*_tensors_held_twice(shards), *_tensors_elsewhere(index, shards)]
    if errors:
        raise gathered(errors)
    total = sum(ref.length for tensors in shards.values() for ref in tensors.values())
    return _metadata_findings(index, total)


def _weight_map(document: Mapping[str, Any], file: str) -> dict[str, str]:
    weight_map = document.get(WEIGHT_MAP)
    if not isinstance(weight_map, dict) or not weight_map:
        message = "must be an object that names a file for each tensor"
        raise _invalid(message, file, WEIGHT_MAP)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            message = f"the file of a tensor must be a string, not {type(shard).__name__}"
            raise _invalid(message, file, WEIGHT_MAP, tensor)
    return weight_map


def _invalid(message: str, file: str, field: str, tensor: str | None = None) -> InputError:
    code = Code.INDEX_INVALID
    return InputError(message, code=code, file=file, tensor=tensor, field=field, hint=_REBUILD)


def _check_shard_name(shard: str, file: str) -> None:
    check_relative(shard, file=file, field=WEIGHT_MAP)
    if not shard.endswith(WEIGHTS_SUFFIX):
        message = f"{printable(shard)!r} is no {WEIGHTS_SUFFIX} file"
        raise _invalid(message, file, WEIGHT_MAP)


def _tensors_held_twice(shards: Mapping[str, Mapping[str, TensorRef]]) -> list[AdaptoolError]:
    holder: dict[str, str] = {}
    errors: list[AdaptoolError] = []
    for shard, tensors in shards.items():
        for tensor, ref in tensors.items():
            other = holder.setdefault(tensor, shard)
            if other != shard:
                message = f"is in {printable(other)} as well; loaders disagree on which one counts"
                code = Code.TENSOR_IN_TWO_SHARDS
                errors.append(InputError(message, code=code, file=ref.file, tensor=tensor))
    return errors[:MOST_ERRORS]


def _tensors_elsewhere(
    index: Index, shards: Mapping[str, Mapping[str, TensorRef]]
) -> list[AdaptoolError]:
    """Tensors that the index places in a shard without them, and tensors it does not place."""
    listed = [
        _mismatch(f"the index places it in {printable(shard)}, which lacks it", index.file, tensor)
        for tensor, shard in index.weight_map.items()
        if tensor not in shards[shard]
    ]
    held = [
        _mismatch(f"is not listed in {index.file}", ref.file, tensor)
        for tensors in shards.values()
        for tensor, ref in tensors.items()
        if tensor not in index.weight_map
    ]
    return [*listed[:MOST_ERRORS], *held[:MOST_ERRORS]]


def _mismatch(message: str, file: str, tensor: str) -> AdaptoolError:
    code = Code.INDEX_MISMATCH
    return InputError(message, code=code, file=file, tensor=tensor, hint=_REBUILD)


def _metadata_findings(index: Index, total: int) -> list[Finding]:
    if not isinstance(index.metadata, dict):
        message = "is missing; transformers does not load such an index"
        return [_warning(Code.INDEX_INVALID, message, index, METADATA)]
    claimed = index.metadata.get(TOTAL_SIZE, total)
    if claimed == total:
        return []
    message = f"says {printable(str(claimed), most=40)}, the tensors have {total} bytes"
    return [_warning(Code.INDEX_TOTAL_SIZE, message, index, f"{METADATA}.{TOTAL_SIZE}")]


def _warning(code: Code, message: str, index: Index, field: str) -> Finding:
    return Finding(code, Severity.WARNING, message, file=index.file, field=field)
