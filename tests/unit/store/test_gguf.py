"""The GGUF header, against the gguf package."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_files
from adaptool.dtypes import DTYPES
from adaptool.errors import AdaptoolError, InputError, MismatchError, ResourceError
from adaptool.findings import Code
from adaptool.store.ggml_types import IDS, QUANTIZED, TYPES
from adaptool.store.gguf import encode_gguf, is_gguf, read_gguf
from adaptool.store.local import LocalSource
from memory_source import MemorySource

_NAME = "blk.0.attn_v.weight.lora_a"


def _sample(folder: Path) -> bytes:
    tensors = {
        _NAME: np.arange(6, dtype="float32").reshape(2, 3),
        "blk.0.attn_v.weight.lora_b": np.arange(10, dtype="float16").reshape(5, 2),
    }
    return gguf_files.write(
        folder / "sample.gguf", tensors, **{"general.name": "näme"}
    ).read_bytes()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file of the gguf package's."""
    return _sample(tmp_path_factory.mktemp("gguf"))


def _header(
    *, version: int = 3, tensors: int = 0, pairs: int = 0, rest: bytes = b""
) -> MemorySource:
    return MemorySource(b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _record(name: str, sizes: list[int], kind: int, offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def test_a_file_of_the_package_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Fields, shapes in torch's order, and the bytes at every offset."""
    values = np.random.default_rng(0).standard_normal((3, 7)).astype("float32")
    path = gguf_files.write(tmp_path / "x.gguf", {"a": values, "b": values[:1].astype("float16")})
    with LocalSource(path) as source:
        found = read_gguf(source)
        ref = found.header.tensors["a"]
        raw = source.read(ref.offset, ref.length)
    assert found.fields["adapter.lora.alpha"] == 16.0
    assert ref.shape == (3, 7)
    assert raw == values.tobytes()
    assert found.header.tensors["b"].dtype == DTYPES["F16"]


def test_what_is_written_the_package_reads(tmp_path: Path) -> None:
    """The header, the alignment of every tensor and the padding behind the last."""
    entries = [("one", DTYPES["F32"], (3, 5)), ("two", DTYPES["BF16"], (2, 2, 7))]
    fields = {"general.architecture": "llama", "adapter.lora.alpha": 3.5, "count": 7}
    raw, offsets, size = encode_gguf(fields, entries)
    content = bytearray(size)
    content[: len(raw)] = raw
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    reader = gguf.GGUFReader(path)
    assert [(each.name, tuple(each.shape[::-1])) for each in reader.tensors] == [
        ("one", (3, 5)),
        ("two", (2, 2, 7)),
    ]
    assert [each.data_offset for each in reader.tensors] == offsets
    assert not any(offset % 32 for offset in offsets)
    found = {name: field.contents() for name, field in reader.fields.items()}
    assert {name: found[name] for name in fields} == fields
    with LocalSource(path) as source:
        assert read_gguf(source).fields == fields


def test_the_type_numbers_are_the_packages() -> None:
    """Plain types and block formats, every one that the package knows."""
    known = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    assert {**{n: dtype.name for n, dtype in TYPES.items()}, **QUANTIZED} == known
    assert all(TYPES[number].name == name for name, number in IDS.items())


def test_a_quantized_tensor_is_refused_by_name() -> None:
    """Q8_0 holds no plain numbers."""
    source = _header(tensors=1, rest=_record("x", [32, 1], 8, 0) + bytes(200))
    with pytest.raises(MismatchError, match="Q8_0") as caught:
        read_gguf(source)
    assert caught.value.code is Code.DTYPE_NOT_COMPUTABLE
    assert caught.value.tensor == "x"


@pytest.mark.parametrize(
    ("source", "error", "code"),
    [
        (_header(version=1), MismatchError, Code.UNSUPPORTED),
        (_header(version=4), MismatchError, Code.UNSUPPORTED),
        (_header(version=3 << 24), MismatchError, Code.UNSUPPORTED),
        (_header(tensors=1 << 62), ResourceError, Code.LIMIT_EXCEEDED),
        (_header(pairs=1 << 62), ResourceError, Code.LIMIT_EXCEEDED),
        (_header(tensors=3), InputError, Code.HEADER_TRUNCATED),
        (_header(pairs=1, rest=struct.pack("<Q", 1 << 60)), InputError, Code.TENSOR_NAME_UNSAFE),
        (
            _header(pairs=1, rest=_text("k") + struct.pack("<IQ", 8, 1 << 62)),
            InputError,
            Code.HEADER_TRUNCATED,
        ),
        (
            _header(pairs=1, rest=_text("k") + struct.pack("<IIQ", 9, 4, 1 << 61)),
            InputError,
            Code.HEADER_TRUNCATED,
        ),
        (
            _header(pairs=1, rest=_text("k") + struct.pack("<IIQ", 9, 8, 1 << 61)),
            InputError,
            Code.HEADER_TRUNCATED,
        ),
        (
            _header(pairs=1, rest=_text("k") + struct.pack("<IIQ", 9, 9, 1)),
            InputError,
            Code.FIELD_TYPE,
        ),
        (_header(pairs=1, rest=_text("k") + struct.pack("<I", 13)), InputError, Code.FIELD_TYPE),
        (
            _header(pairs=2, rest=(_text("k") + struct.pack("<II", 4, 1)) * 2),
            InputError,
            Code.DUPLICATE_KEY,
        ),
        (
            _header(pairs=1, rest=_text("general.alignment") + struct.pack("<II", 4, 24)),
            InputError,
            Code.FIELD_VALUE,
        ),
        (
            _header(tensors=1, rest=_record("x", [1, 1, 1, 1, 1], 0, 0)),
            InputError,
            Code.SHAPE_INVALID,
        ),
        (
            _header(tensors=1, rest=_record("x", [1 << 40, 1 << 40], 0, 0)),
            InputError,
            Code.SHAPE_INVALID,
        ),
        (_header(tensors=1, rest=_record("x", [1], 99, 0)), InputError, Code.DTYPE_UNKNOWN),
        (
            _header(tensors=1, rest=_record("x", [1], 0, 32) + bytes(200)),
            InputError,
            Code.OFFSETS_INVALID,
        ),
        (_header(tensors=1, rest=_record("x", [999], 0, 0)), InputError, Code.DATA_TRUNCATED),
        (
            _header(tensors=2, rest=_record("x", [8], 0, 0) + _record("x", [8], 0, 32) + bytes(64)),
            InputError,
            Code.DUPLICATE_KEY,
        ),
        (
            _header(tensors=1, rest=_record("x", [1], 0, 0) + bytes(500)),
            InputError,
            Code.DATA_TRAILING,
        ),
        (_header(tensors=1, rest=_text("x" * 64)), InputError, Code.TENSOR_NAME_UNSAFE),
    ],
)
def test_a_hostile_header_is_refused(
    source: MemorySource, error: type[AdaptoolError], code: Code
) -> None:
    """Counts, lengths, types, shapes and offsets that no writer makes."""
    with pytest.raises(error) as caught:
        read_gguf(source)
    assert caught.value.code is code
    assert caught.value.file == source.name


def test_every_truncation_is_said(sample: bytes) -> None:
    """A file cut at any byte of its header or data is refused, not misread."""
    end = len(sample) - 12  # the last tensor's padding may be missing
    for length in range(4, end):
        with pytest.raises(InputError):
            read_gguf(MemorySource(sample[:length]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bits_end_in_an_error_or_in_a_reading(data: st.DataObject) -> None:
    """Never in another exception, nor in tensors outside the file."""
    content = bytearray(_SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    source = MemorySource(bytes(content))
    try:
        found = read_gguf(source)
    except AdaptoolError:
        return
    for ref in found.header.tensors.values():
        assert ref.offset + ref.length <= source.size


def test_a_long_list_is_passed_over() -> None:
    """A model's vocabulary is not kept; what follows it is still found."""
    words = _text("words") + struct.pack("<IIQ", 9, 8, 2000) + _text("w") * 2000
    after = _text("after") + struct.pack("<II", 4, 5)
    found = read_gguf(_header(pairs=2, rest=words + after))
    assert found.fields == {"words": [2000], "after": 5}


def test_only_the_magic_makes_a_gguf_file(sample: bytes) -> None:
    """Short files are none."""
    assert is_gguf(MemorySource(sample))
    assert not is_gguf(MemorySource(b"GGU"))
    assert not is_gguf(MemorySource(b"{}" * 20))


def _made() -> bytes:
    entries = [(_NAME, DTYPES["F32"], (2, 3)), ("b", DTYPES["F16"], (5, 2))]
    fields = {"general.architecture": "llama", "general.type": "adapter", "adapter.lora.alpha": 4.0}
    raw, _, size = encode_gguf(fields, entries)
    return raw + bytes(size - len(raw))


_SAMPLE = _made()
