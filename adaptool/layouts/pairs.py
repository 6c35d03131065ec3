"""Files that hold pairs of factors by module and little else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from adaptool.errors import AdaptoolError, gathered
from adaptool.findings import Finding
from adaptool.layouts.kohya_keys import may_drop, refuse_leftover
from adaptool.layouts.plain_deltas import missing_partner
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.reading import Reading
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

Roles = Mapping[str, TensorRef]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The keys of a file by module and role, and those of another kind."""

    modules: Mapping[str, Roles]
    leftover: tuple[TensorRef, ...]


def paired(
    tensors: Mapping[str, TensorRef],
    endings: Mapping[str, str],
    takes: Callable[[str], bool] = lambda _: True,
) -> Pairs:
    """Sort keys: `module` + an ending; `takes` says which modules are the layout's."""
    modules: dict[str, dict[str, TensorRef]] = {}
    leftover = []
    for key, ref in tensors.items():
        ending = next((ending for ending in endings if key.endswith(ending)), None)
        module = key.removesuffix(ending or "")
        if ending is None or not module or not takes(module):
            leftover.append(ref)
        else:
            modules.setdefault(module, {})[endings[ending]] = ref
    return Pairs(modules, tuple(leftover))


def complete(name: str, roles: Roles) -> None:
    """InputError where one of A and B is missing."""
    for role in ("A", "B"):
        if role not in roles:
            raise missing_partner(next(iter(roles.values())), f"{name}, factor {role}")


def adapter_of(
    files: AdapterFiles,
    reading: Reading,
    found: Pairs,
    make: Callable[[str, Roles], Iterable[Delta]],
    *,
    layout: str,
    replaced: Sequence[Replaced] = (),
    findings: tuple[Finding, ...] = (),
) -> Adapter:
    """The adapter that `make` gives of each module; InputError with all problems, 20 at most."""
    dropped = [ref for ref in found.leftover if may_drop(ref.name, reading)]
    refuse_leftover([ref for ref in found.leftover if ref not in dropped], files, layout)
    deltas: list[Delta] = []
    errors: list[AdaptoolError] = []
    for name, roles in found.modules.items():
        try:
            complete(name, roles)
            deltas += make(name, roles)
        except AdaptoolError as error:
            errors.append(error)
    if errors:
        raise gathered(errors)
    return Adapter(
        name=files.name,
        layout=layout,
        config={},
        deltas=tuple(deltas),
        replaced=tuple(replaced),
        leftover=(),
        tensors=files.tensors,
        findings=findings,
        dropped=tuple(ref.name for ref in dropped),
        metadata=files.header.metadata,
    )
