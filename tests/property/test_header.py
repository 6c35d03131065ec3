"""Laws of the header: our bytes are the library's, and what we accept the library accepts."""

from __future__ import annotations

import contextlib
import ctypes
import json
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, TensorSpec, serialize

from adaptool.dtypes import DTYPES, Dtype
from adaptool.errors import AdaptoolError, InputError
from adaptool.store.header import (
    Header,
    canonical_order,
    encode_header,
    read_header,
    tensor_bytes,
)
from adaptool.store.index import parse_index
from bad_builders import GOOD_TENSOR, header_bytes
from memory_source import MemorySource

# A loaded machine is no reason to fail.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Entry = tuple[str, Dtype, tuple[int, ...]]

# What the library calls dtypes that torch has no plain element type for. It counts F4 in pairs.
SPEC_NAMES = {"F4": "float4_e2m1fn_x2", "F8_E8M0": "float8_e8m0fnu"}
WRITABLE = [dtype for dtype in DTYPES.values() if not dtype.name.startswith("F6")]
ZEROS = ctypes.create_string_buffer(4096)

# Any text but lone surrogates, which are no characters.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = TEXT.filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def entry_lists(draw: st.DrawFn) -> list[Entry]:
    """Distinct names with dtypes and shapes of whole bytes."""
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    return [(name, *draw(layouts())) for name in names]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Dtype, tuple[int, ...]]:
    """A dtype and a shape; of F4 an even number of elements in the last axis."""
    dtype, shape = draw(st.sampled_from(WRITABLE)), draw(SHAPES)
    if dtype.name == "F4":
        shape = (*shape, 2 * draw(st.integers(0, 3)))
    return dtype, shape


def written_by_the_library(entries: list[Entry], metadata: dict[str, str] | None) -> bytes:
    """The whole file, all zeros for data, from safetensors itself."""
    return bytes(serialize({entry[0]: spec(*entry[1:]) for entry in entries}, metadata))


def spec(dtype: Dtype, shape: tuple[int, ...]) -> TensorSpec:
    """A tensor as the library takes it."""
    sizes = [*shape[:-1], shape[-1] // 2] if dtype.name == "F4" else list(shape)
    name = SPEC_NAMES.get(dtype.name, dtype.torch)
    length = tensor_bytes(dtype, shape)
    return TensorSpec(dtype=name, shape=sizes, data_ptr=ctypes.addressof(ZEROS), data_len=length)


def accepted_by_the_library(content: bytes) -> bool:
    """Whether safetensors takes the file."""
    try:
        safetensors.deserialize(content)
    except SafetensorError:
        return False
    return True


def accepted_by_us(content: bytes) -> Header | None:
    """The header; None where we refuse it. Nothing but an AdaptoolError may come out."""
    try:
        return read_header(MemorySource(content))
    except AdaptoolError as error:
        refused = error
    assert refused.exit_code in {3, 7}
    assert refused.file == "memory.safetensors"
    json.dumps(refused.as_json(), ensure_ascii=False).encode()
    str(refused).encode()
    return None


def assert_no_laxer_than_the_library(content: bytes) -> None:
    """What we accept, the library accepts."""
    if accepted_by_us(content) is not None:
        assert accepted_by_the_library(content)


@UNHURRIED
@given(entry_lists(), st.none() | st.dictionaries(TEXT, TEXT, max_size=1))
def test_encoder_writes_the_bytes_of_the_library(
    entries: list[Entry], metadata: dict[str, str] | None
) -> None:
    """In canonical order the header is the library's, byte for byte."""
    if not entries and metadata is not None:
        return  # the library writes a file that it cannot read
    expected = written_by_the_library(entries, metadata)
    ours = encode_header(canonical_order(entries), metadata)
    assert ours + bytes(len(expected) - len(ours)) == expected


@UNHURRIED
@given(entry_lists(), st.none() | st.dictionaries(TEXT, TEXT, max_size=4))
def test_written_header_is_read_back(entries: list[Entry], metadata: dict[str, str] | None) -> None:
    """Names, dtypes, shapes, order and metadata survive, in any order of entries."""
    raw = encode_header(entries, metadata)
    data = sum(tensor_bytes(dtype, shape) for _, dtype, shape in entries)
    header = read_header(MemorySource(raw + bytes(data)))
    seen = {ref.name: (ref.dtype, ref.shape) for ref in header.tensors.values()}
    assert seen == {name: (dtype, shape) for name, dtype, shape in entries}
    assert dict(header.metadata) == (metadata or {})
    assert header.raw == raw
    assert accepted_by_the_library(raw + bytes(data))


def sound_file() -> bytes:
    """A file with what headers have: metadata, several dtypes, an empty tensor."""
    entries = [
        ("model.layers.0.q.weight", DTYPES["F32"], (2, 2)),
        ("b", DTYPES["BF16"], (3,)),
        ("e", DTYPES["U8"], (0, 4)),
        ("c", DTYPES["U8"], (5,)),
    ]
    return encode_header(entries, {"format": "pt"}) + bytes(range(27))


def test_file_truncated_at_any_byte_is_refused() -> None:
    """Every proper prefix of a file is an InputError that names the file."""
    content = sound_file()
    assert accepted_by_us(content) is not None
    for length in range(len(content)):
        with pytest.raises(InputError) as caught:
            read_header(MemorySource(content[:length]))
        assert caught.value.file == "memory.safetensors"


def test_file_with_any_header_byte_changed_is_no_laxer_than_the_library() -> None:
    """Every byte of length and header, replaced by each of a few telling ones."""
    content = sound_file()
    length = int.from_bytes(content[:8], "little")
    for position in range(8 + length):
        for byte in b'\0 "\\,:[]{}-01.eEN\x7f\x80\xff':
            changed = bytearray(content)
            changed[position] = byte
            assert_no_laxer_than_the_library(bytes(changed))


TOKENS = [
    *("{", "}", "[", "]", ",", ":", '"', "\\", " ", "\t", "\n", "\r", "\0", "\ufeff", "//", "é"),
    *("null", "true", "false", "NaN", "Infinity", "-Infinity", "-0", "0", "1", "-1", "1.0", "1e1"),
    *("1e999", "1e-999", "02", "4", "16", str(2**63), str(2**64), "9" * 400, "9" * 5000),
    *('"x"', '"x":', '"F32"', '"F4"', '"dtype"', '"shape"', '"data_offsets"', '"__metadata__":'),
    *('"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\u0064type"', "[" * 130, "{}", "[]", "[0]"),
    *(json.dumps({"x": GOOD_TENSOR}), json.dumps(GOOD_TENSOR)),
]


@st.composite
def mutated_headers(draw: st.DrawFn) -> bytes:
    """A sound header's text with some stretches replaced by telling tokens."""
    text = json.dumps({"__metadata__": {"a": "b"}, "x": GOOD_TENSOR, "": GOOD_TENSOR | EMPTY})
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(st.sampled_from(TOKENS)) + text[end:]
    return text.encode()


EMPTY = {"shape": [0], "data_offsets": [16, 16]}
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["F32", "BF16", "F4", "F6_E2M3", "f32", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner)
    ),
    max_leaves=8,
)
SHAPE_VALUES = st.lists(st.sampled_from([0, 1, 2, 4, 2**31, 2**32, 2**62, 2**63, 2**64]))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "f32"]) | JSON_VALUES,
        "shape": SHAPE_VALUES | JSON_VALUES,
        "data_offsets": st.lists(st.sampled_from([0, 1, 2, 4, 8, 16]), min_size=2, max_size=2)
        | JSON_VALUES,
    },
    optional={"strides": JSON_VALUES},
)
DOCUMENTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), ENTRIES | JSON_VALUES, max_size=3)
METADATA = st.none() | st.dictionaries(TEXT, TEXT | JSON_VALUES, max_size=2) | JSON_VALUES


@settings(UNHURRIED, max_examples=1500)
@given(mutated_headers(), st.sampled_from([16, 16, 16, 0, 15, 17]))
@example(b'{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[-0,16]}}', 16)
@example(b'{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16],"y":1e999}}', 16)
@example(b'{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16],"y":"\\ud800"}}', 16)
@example(b'{"x":{"dtype":"F32","shape":[9223372036854775807,2,0],"data_offsets":[0,0]}}', 0)
def test_mutated_text_is_no_laxer_than_the_library(header: bytes, data: int) -> None:
    """A header whose text was damaged gives an AdaptoolError, or the library takes it too."""
    assert_no_laxer_than_the_library(header_bytes(header) + bytes(data))


@settings(UNHURRIED, max_examples=800)
@given(DOCUMENTS, METADATA, st.sampled_from([0, 1, 2, 4, 8, 16]))
def test_odd_entries_are_no_laxer_than_the_library(
    document: dict[str, Any], metadata: Any, data: int
) -> None:
    """A header with odd values in odd places gives an AdaptoolError, or the library takes it."""
    content = header_bytes({"__metadata__": metadata, **document}) + bytes(data)
    assert_no_laxer_than_the_library(content)


@UNHURRIED
@given(st.binary(max_size=64))
def test_any_bytes_are_no_laxer_than_the_library(content: bytes) -> None:
    """Arbitrary bytes give an AdaptoolError, or the library takes them too."""
    assert_no_laxer_than_the_library(content)


@UNHURRIED
@given(
    st.dictionaries(st.sampled_from(["metadata", "weight_map"]), JSON_VALUES)
    | st.fixed_dictionaries({"weight_map": st.dictionaries(TEXT, TEXT | JSON_VALUES)})
)
def test_odd_index_gives_a_clean_error(document: dict[str, Any]) -> None:
    """An index with odd values is parsed or refused, and nothing else."""
    shards: tuple[str, ...] = ()
    with contextlib.suppress(InputError):
        shards = parse_index(json.dumps(document).encode(), file="index.json").shards
    assert all(shard.endswith(".safetensors") for shard in shards)
