"""The one door for pickles: `pytorch_model.bin`, `adapter_model.bin`, `.pt`, with --allow-pickle.

Nothing of a pickle runs in this process. The archive is checked without executing it: stored
members only (a deflated one can blow up a thousandfold), no name twice, and no global but those
that tensors are rebuilt with. Then a child process with limits on memory and time loads it with
`weights_only=True` and writes a safetensors file, which is read like any other.
"""

from __future__ import annotations

import pickletools
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from adaptool.errors import InputError, MismatchError, ResourceError
from adaptool.findings import Code
from adaptool.store.documents import encode_json, read_json_object
from adaptool.store.safe_names import check_relative, printable

CHILD = "adaptool.engine.unpickle"
OLDEST_TORCH = (2, 10)  # CVE-2026-24747: weights_only could be broken before
SUFFIXES = (".bin", ".pt", ".pth", ".lora")
RENAMED = {"adapter_model.bin": "adapter_model.safetensors"}
INDEX = "pytorch_model.bin.index.json"
PLAIN_INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 64 * 1024 * 1024
LARGEST_PROGRAM = 64 * 1024 * 1024
# What torch writes to rebuild tensors; storages are added by their ending.
_ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_parameter",
        "torch.serialization _get_layout",
        "torch Size",
        "torch.nn.parameter Parameter",
        "torch._tensor _rebuild_from_type_v2",
    }
)


@dataclass(frozen=True, slots=True)
class PlainForm:
    """What is opened for a path, and what every file that was made for it stands for."""

    path: Path
    stands_for: Mapping[Path, Path] = field(default_factory=dict)


def plain_form(path: Path, stack: ExitStack) -> PlainForm:
    """`path`, or where it is a pickle or a directory with nothing else, its safetensors form.

    The form lives in a temporary directory that `stack` removes. InputError for what a tensor file
    would not hold, MismatchError for a torch that is too old to be trusted with it.
    """
    pickles = _pickles(path)
    if not pickles:
        return PlainForm(path)
    _check_torch()
    # The last component stays what it was: the receipt names it.
    room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptool-")))
    if path.is_file():
        target = room / f"{path.stem}.safetensors"
        _convert(path, target)
        beside = path.parent / "adapter_config.json"
        if beside.exists():
            (room / beside.name).symlink_to(beside.resolve())
        return PlainForm(target, {target: path, room: path.parent})
    return _directory(path, pickles, room / path.resolve().name)


def _pickles(path: Path) -> list[Path]:
    """The pickled weights at `path`, none where safetensors are there as well."""
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return []
    names = sorted(path.glob("*.bin"))
    return [entry for entry in names if entry.name.startswith(("pytorch_model", "adapter_model"))]


def _check_torch() -> None:
    installed = version("torch")
    parts = tuple(int(part) for part in installed.split(".")[:2])
    if parts < OLDEST_TORCH:
        message = f"torch {installed} cannot be trusted with a pickle"
        hint = "torch 2.10 closed the last known hole (CVE-2026-24747)"
        raise MismatchError(message, code=Code.PICKLE_FILE, field="--allow-pickle", hint=hint)


def _directory(path: Path, pickles: list[Path], room: Path) -> PlainForm:
    room.mkdir()
    renamed = {entry.name: _renamed(entry.name) for entry in pickles}
    for entry in pickles:
        _convert(entry, room / renamed[entry.name])
    for entry in sorted(path.iterdir()):
        if entry not in pickles and entry.name != INDEX:
            (room / entry.name).symlink_to(entry.resolve())
    if (path / INDEX).exists():
        _convert_index(path / INDEX, renamed, room)
    made = {room / renamed[entry.name]: entry for entry in pickles}
    return PlainForm(room, {**made, room / PLAIN_INDEX: path / INDEX, room: path})


def _renamed(name: str) -> str:
    stem = name.removesuffix(".bin").replace("pytorch_model", "model", 1)
    return RENAMED.get(name, f"{stem}.safetensors")


def _convert_index(path: Path, renamed: dict[str, str], room: Path) -> None:
    index = read_json_object(path, limit_bytes=LARGEST_INDEX, what="index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        message = "no weight_map"
        raise InputError(message, code=Code.INDEX_INVALID, file=str(path), field="weight_map")
    for tensor, file in weight_map.items():
        check_relative(str(file), file=str(path), field=f"weight_map[{tensor}]")
        if file not in renamed:
            message = f"names {file!r}, which is not there"
            raise InputError(message, code=Code.SHARD_MISSING, file=str(path), tensor=tensor)
    index["weight_map"] = {name: renamed[file] for name, file in weight_map.items()}
    (room / PLAIN_INDEX).write_bytes(encode_json(index))


def _convert(source: Path, target: Path) -> None:
    _check_archive(source)
    command = [sys.executable, "-m", CHILD, str(source), str(target)]
    child = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own module
    if child.returncode == 0:
        return
    if child.returncode < 0 or child.returncode > 128:
        message = "loading it took more memory or time than a file of its size should"
        raise ResourceError(message, code=Code.LIMIT_EXCEEDED, file=printable(str(source)))
    said = said_in(target)
    message = printable(said.read_text()) if said.exists() else "cannot be read"
    raise InputError(message, code=Code.PICKLE_FILE, file=printable(str(source)))


def said_in(target: Path) -> Path:
    """Where the child writes what is wrong."""
    return target.with_name(f"{target.name}.refused")


def _check_archive(source: Path) -> None:
    """InputError for an archive that is not what torch.save writes."""
    try:
        with zipfile.ZipFile(source) as archive:
            _check_members(source, archive)
            for member in archive.infolist():
                if member.filename.endswith(".pkl"):
                    _check_program(source, archive.read(member))
    except zipfile.BadZipFile:
        message = "is no torch archive (or one older than torch 1.6, which is not read)"
        raise InputError(message, code=Code.PICKLE_FILE, file=printable(str(source))) from None


def _check_members(source: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    programs = [member for member in members if member.filename.endswith(".pkl")]
    problem = None
    if len(set(names)) != len(names):
        problem = "holds a member twice"
    elif any(member.compress_type != zipfile.ZIP_STORED for member in members):
        problem = "holds deflated members, which torch.save does not write"
    elif sum(member.file_size for member in members) > source.stat().st_size:
        problem = "unpacks to more than its own size"
    elif len(programs) != 1 or programs[0].file_size > LARGEST_PROGRAM:
        problem = f"holds {len(programs)} pickle programs; a state dict has one, of a few MB"
    if problem is not None:
        raise InputError(problem, code=Code.PICKLE_FILE, file=printable(str(source)))


def _check_program(source: Path, program: bytes) -> None:
    """Read the opcodes, run none: every global must be one that tensors are rebuilt with."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if isinstance(argument, str):
                strings.append(argument)
            if opcode.name == "GLOBAL":
                _check_global(source, str(argument))
            elif opcode.name == "STACK_GLOBAL":
                _check_global(source, " ".join(strings[-2:]))
    except (ValueError, IndexError) as error:
        message = f"its pickle program is malformed: {error}"
        raise InputError(message, code=Code.PICKLE_FILE, file=printable(str(source))) from None


def _check_global(source: Path, name: str) -> None:
    if name in _ALLOWED or (name.startswith("torch ") and name.endswith("Storage")):
        return
    message = f"contains {printable(name.replace(' ', '.'))}, which no state dict needs"
    hint = "do not load this file anywhere; ask its author for safetensors"
    raise InputError(message, code=Code.PICKLE_FILE, file=printable(str(source)), hint=hint)
