"""Reading and writing headers; the table of bad ones is in test_bad_files.py."""

from __future__ import annotations

import gc

import pytest
import safetensors

from adaptool.dtypes import DTYPES
from adaptool.errors import AdaptoolError, InputError, InternalError, ResourceError
from adaptool.findings import Code
from adaptool.store.header import (
    Limits,
    canonical_order,
    encode_header,
    read_header,
    tensor_bytes,
)
from bad_builders import GOOD_TENSOR, header_bytes
from memory_source import MemorySource

F32, BF16, U8, F4 = (DTYPES[name] for name in ("F32", "BF16", "U8", "F4"))


def test_header_gives_offsets_in_the_file() -> None:
    """Offsets are absolute, lengths in bytes, and raw is what lies before the data."""
    raw = header_bytes({"x": GOOD_TENSOR, "__metadata__": {"format": "pt"}})
    source = MemorySource(raw + bytes(16))
    header = read_header(source)
    assert header.raw == raw
    assert header.metadata == {"format": "pt"}
    tensor = header.tensors["x"]
    assert (tensor.offset, tensor.length) == (len(raw), 16)
    assert (tensor.dtype, tensor.shape, tensor.elements) == (F32, (2, 2), 4)
    assert tensor.source is source
    assert tensor.file == "memory.safetensors"


def test_tensors_come_in_the_order_of_their_data() -> None:
    """The order of the JSON does not matter, that of the offsets does."""
    entries = {
        "late": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]},
        "empty": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]},
        "early": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    }
    header = read_header(MemorySource(header_bytes(entries) + bytes(3)))
    assert list(header.tensors) == ["early", "empty", "late"]


def test_two_empty_tensors_may_share_an_offset() -> None:
    """Tensors without elements take no place."""
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
    header = read_header(MemorySource(header_bytes({"a": empty, "b": empty})))
    assert [tensor.length for tensor in header.tensors.values()] == [0, 0]


def test_scalar_has_one_element() -> None:
    """An empty shape is a scalar."""
    scalar = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    assert read_header(MemorySource(header_bytes({"a": scalar}) + bytes(4))).tensors["a"].elements


def test_unknown_fields_make_one_finding_each() -> None:
    """A field that every tensor has is one finding with their number, not one for each."""
    extra = {**GOOD_TENSOR, "shape": [0], "data_offsets": [0, 0], "strides": [1]}
    raw = header_bytes({str(i): extra for i in range(5)})
    (finding,) = read_header(MemorySource(raw)).findings
    assert finding.code is Code.TENSOR_EXTRA_FIELD
    assert (finding.tensor, finding.field) == ("0", "strides")
    assert "5 tensors" in finding.message


def test_plausible_header_is_never_taken_for_another_format() -> None:
    """A header of 60 bytes starts with the byte of `<`, and is no HTML page."""
    raw = header_bytes('{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.ljust(60))
    assert raw.startswith(b"<")
    assert "x" in read_header(MemorySource(raw)).tensors


def test_file_of_zeros_mentions_the_power_cut() -> None:
    """A file that a power cut left full of zeros says what it is."""
    with pytest.raises(InputError) as caught:
        read_header(MemorySource(bytes(4096)))
    assert caught.value.code is Code.HEADER_NOT_JSON
    assert caught.value.hint is not None
    assert "power cut" in caught.value.hint


def test_writer_fault_of_the_library_is_recognised() -> None:
    """What safetensors 0.8.0 writes for an empty set with metadata is named in the hint."""
    with pytest.raises(InputError) as caught:
        read_header(MemorySource(header_bytes('{},"__metadata__":{"a":"b"}}  ')))
    assert caught.value.hint is not None
    assert "0.8.0" in caught.value.hint


def test_truncation_names_the_first_tensor_that_is_cut() -> None:
    """Of three tensors with half the data gone, the second is the first one hurt."""
    raw = encode_header([(name, U8, (10,)) for name in "abc"], None)
    with pytest.raises(InputError) as caught:
        read_header(MemorySource(raw + bytes(15)))
    assert caught.value.code is Code.DATA_TRUNCATED
    assert caught.value.tensor == "b"
    assert "5 bytes missing" in caught.value.message
    assert "15 bytes of data of 30" in caught.value.message


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (Limits(tensors=1), ResourceError),
        (Limits(header_bytes=10), InputError),
        (Limits(name_bytes=1), InputError),
        (Limits(dimensions=1), InputError),
    ],
    ids=["tensors", "header", "name", "dimensions"],
)
def test_limits_are_kept(limits: Limits, error: type[AdaptoolError]) -> None:
    """Each limit refuses what exceeds it by one."""
    source = MemorySource(encode_header([("ab", U8, (0, 1)), ("cd", U8, (0, 1))], None))
    assert len(read_header(source).tensors) == 2
    with pytest.raises(error):
        read_header(source, limits=limits)


def test_limit_on_tensors_counts_escaped_field_names() -> None:
    """Escapes that hide the field names from the quick count do not hide the tensors."""
    entry = '{"dtype":"U8","shape":[0],"data\\u005foffsets":[0,0]}'
    source = MemorySource(header_bytes('{"a":' + entry + ',"b":' + entry + "}"))
    assert len(read_header(source).tensors) == 2
    with pytest.raises(ResourceError):
        read_header(source, limits=Limits(tensors=1))


def test_deep_value_in_a_message_is_cut() -> None:
    """A hostile value that is deep and large is shown short, and printing it does not recurse."""
    deep = "[" * 300 + "]" * 300
    text = '{"x":{"dtype":"F32","shape":[' + deep + '],"data_offsets":[0,16]}}'
    with pytest.raises(InputError) as caught:
        read_header(MemorySource(header_bytes(text) + bytes(16)))
    assert caught.value.code is Code.SHAPE_INVALID
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_left_as_it_was(enabled: bool) -> None:
    """Reading a header, well or badly, leaves the cycle collector on or off as it was."""
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(InputError):
            read_header(MemorySource(header_bytes("[]")))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_tensor_bytes_rounds_sub_byte_dtypes_up() -> None:
    """Three 4-bit elements take two bytes."""
    assert tensor_bytes(F4, (3,)) == 2
    assert tensor_bytes(F4, (2, 2)) == 2
    assert tensor_bytes(BF16, (3, 5)) == 30
    assert tensor_bytes(F32, ()) == 4
    assert tensor_bytes(F32, (0, 7)) == 0


def test_canonical_order_is_dtype_then_name_bytes() -> None:
    """Larger alignment first, then names by their UTF-8 bytes."""
    entries = [(name, dtype, (1,)) for dtype in (U8, F32) for name in ("é", "b", "Z")]
    ordered = [(name, dtype.name) for name, dtype, _ in canonical_order(entries)]
    assert ordered == [
        ("Z", "F32"),
        ("b", "F32"),
        ("é", "F32"),
        ("Z", "U8"),
        ("b", "U8"),
        ("é", "U8"),
    ]


def test_metadata_keys_are_sorted_and_first() -> None:
    """Metadata stand first, with sorted keys, whatever the order given."""
    raw = encode_header([("x", U8, (1,))], {"b": "é", "a": "2"})
    assert raw[8:].startswith('{"__metadata__":{"a":"2","b":"é"},"x":'.encode())


def test_written_header_is_aligned_and_the_library_reads_it() -> None:
    """The JSON is padded to 8 bytes, and the library takes the order we give."""
    raw = encode_header([("b", U8, (3,)), ("a", F32, (1,))], {"format": "pt"})
    assert len(raw) % 8 == 0
    seen = {
        name: bytes(tensor["data"]) for name, tensor in safetensors.deserialize(raw + b"bbbaaaa")
    }
    assert seen == {"b": b"bbb", "a": b"aaaa"}


def test_header_of_nothing_is_an_empty_object() -> None:
    """No tensors and no metadata give `{}`; with metadata it is valid too."""
    assert encode_header([], None) == b"\x08\0\0\0\0\0\0\0{}      "
    raw = encode_header([], {"a": "b"})
    assert read_header(MemorySource(raw)).metadata == {"a": "b"}
    assert safetensors.deserialize(raw) == []


@pytest.mark.parametrize("names", [["x", "x"], ["__metadata__"]], ids=["twice", "metadata"])
def test_impossible_name_is_a_bug_of_the_caller(names: list[str]) -> None:
    """Two tensors of one name, or one called like the metadata, cannot be written."""
    with pytest.raises(InternalError):
        encode_header([(name, U8, (1,)) for name in names], None)


def test_header_longer_than_the_format_allows_is_not_written() -> None:
    """What no reader would open is not written."""
    with pytest.raises(ResourceError) as caught:
        encode_header([("x", U8, (1,))], {"a": "x" * 100_000_000})
    assert caught.value.code is Code.LIMIT_EXCEEDED
