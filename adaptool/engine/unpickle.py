"""The child behind the pickle door: `python -m adaptool.engine.unpickle SOURCE TARGET`.

Sets its own limits, loads with `weights_only=True` and writes a safetensors file, or one line that
says what is wrong. Never imported by the parent.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.dtypes import BY_TORCH_NAME, Dtype
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.store.disk import Disk
from adaptool.store.header import encode_header, tensor_bytes
from adaptool.store.pickle_door import said_in
from adaptool.store.sink import FileSink

if TYPE_CHECKING:
    import torch

# torch itself maps some GB; the archive is mapped once and written once.
SPARE_BYTES = 16 * 1024**3
SECONDS = 120
BYTES_A_SECOND = 20 * 1024 * 1024
# LitGPT wraps the state dict.
_WRAPPER = "model"


def main(source: Path, target: Path) -> int:
    """Convert, and return the exit code."""
    _limit(source.stat().st_size)
    try:
        _write(_load(source), target)
    except InputError as error:
        _say(error.message, target)
        return error.exit
    return 0


def _limit(size: int) -> None:
    memory = 4 * size + SPARE_BYTES
    seconds = SECONDS + size // BYTES_A_SECOND
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(source: Path) -> dict[str, torch.Tensor]:
    import torch

    refused = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]
    try:
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except (refused, RuntimeError, EOFError):
        # torch's own text advises to switch the safety off; it is not passed on.
        message = "is no state dict that can be loaded safely"
        raise InputError(message, code=Code.PICKLE_FILE) from None
    if isinstance(found, dict) and list(found) == [_WRAPPER] and isinstance(found[_WRAPPER], dict):
        found = found[_WRAPPER]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        message = "holds something else than names and tensors"
        raise InputError(message, code=Code.PICKLE_FILE)
    return found


def _write(tensors: dict[str, torch.Tensor], target: Path) -> None:
    import torch

    entries = [(name, _dtype(value), tuple(value.shape)) for name, value in tensors.items()]
    header = encode_header(entries, {"format": "pt"})
    size = len(header) + sum(tensor_bytes(dtype, shape) for _, dtype, shape in entries)
    sink = FileSink.open(Disk(), target, target.name, size)
    sink.write(0, memoryview(header))
    offset = len(header)
    for value in tensors.values():
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        if len(raw):
            sink.write(offset, raw.data)
        offset += len(raw)
    sink.finish()


def _say(message: str, target: Path) -> None:
    """Leave the line where the parent looks for it."""
    line = message.encode()
    sink = FileSink.open(Disk(), said_in(target), said_in(target).name, len(line))
    sink.write(0, memoryview(line))
    sink.finish()


def _dtype(value: torch.Tensor) -> Dtype:
    name = str(value.dtype).removeprefix("torch.")
    found = BY_TORCH_NAME.get(name)
    if found is None or value.layout != _strided():
        message = f"holds a tensor of dtype {name} and layout {value.layout}"
        raise InputError(message, code=Code.PICKLE_FILE)
    return found


def _strided() -> torch.layout:
    import torch

    return torch.strided


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
