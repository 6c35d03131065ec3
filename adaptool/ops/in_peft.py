"""What PEFT would make of an adapter's file in its base: tensors that it would pass over."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter
from adaptool.model.encoding import Written
from adaptool.model.reading import BaseNames
from adaptool.ops.identity import settled
from adaptool.readers import File, readers
from adaptool.store.adapter_files import CONFIG_FILE, AdapterFiles


def passed_over(files: AdapterFiles, adapter: Adapter, base: BaseNames) -> Iterator[Finding]:
    """A warning where PEFT, in the current library, finds no place for tensors of the file.

    A merge takes modules by every name that they ever had; PEFT by their present one alone, and it
    goes on without the rest.
    """
    if adapter.layout != "peft" or files.config is None:
        return
    parameters = [delta.parameter for delta in adapter.deltas]
    parameters += [item.parameter for item in adapter.replaced]
    file = File(
        files.name,
        {name: Written(name, ref, ref.dtype) for name, ref in files.tensors.items()},
        files.header.raw,
        {CONFIG_FILE: dict(files.config)},
        base,
        frozenset(parameters),
    )
    reader = readers()["peft"]
    renamed = _under_other_names(adapter, base)
    lost = (*reader.read(file).unread, *renamed)
    if lost:
        message = (
            f"{reader.PROGRAM} passes over {len(lost)} tensors or modules: under transformers "
        )
        yield Finding(
            Code.PEFT_QUIRK,
            Severity.WARNING,
            f"{message}5 has other names for them, or none",
            file=files.source.name,
            tensor=lost[0],
            hint="adaptool convert ADAPTER OUT --to peft --base BASE gives the names it looks for",
        )


def _under_other_names(adapter: Adapter, base: BaseNames) -> list[str]:
    """Modules that the current library has under another name; experts, which it stacks, aside."""
    try:
        (named,) = settled([adapter], base)
    except MismatchError:
        return []
    present = {delta.module for delta in named.deltas}
    return [
        delta.module
        for delta in adapter.deltas
        if delta.module not in present and ".experts." not in delta.module
    ]
