"""What a file that is no safetensors file looks like, from its first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaptool.findings import Code

SNIFFED_BYTES = 512
"""How many bytes from the start of a file `foreign` looks at, at most."""

_DOWNLOAD = "download the file again; the address may need a token or have moved"
_CONVERT = "convert it with --allow-pickle if you trust its author"
_ZIP = b"PK\x03\x04"
# A zip's local header: name length at 26, the name at 30. Source: PKWARE APPNOTE 4.3.7.
_ZIP_NAME_LENGTH, _ZIP_NAME = slice(26, 28), 30
_TAR = (slice(257, 262), b"ustar")
_FOREIGN = (
    (b"GGUF", "a GGUF file"),
    (b"tjgg", "a GGJT file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)
# A flatbuffer's identifier. Source: onnxruntime, core/flatbuffers/schema/adapter_schema.fbs.
_FLATBUFFER_ID, _ONNX_ADAPTER = slice(4, 8), b"TORT"
# protobuf: ir_version (field 1), then producer_name (field 2) as text. Source: onnx.proto.
_ONNX = re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40][ -~]{3}")
_LFS_SIZE = re.compile(rb"^size (\d{1,19})$", re.MULTILINE)
_PICKLE = re.compile(rb"\x80[\x02-\x05][^\x00]")
_WHITESPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Foreign:
    """What a file is instead; `message` continues the file's name."""

    code: Code
    message: str
    hint: str | None = None


def foreign(head: bytes) -> Foreign | None:
    """What the first bytes of a file are the start of; None where they may be safetensors.

    `head`: up to SNIFFED_BYTES bytes. A safetensors file has zeros in bytes 4..7 (its header is
    at most 100 MB long) and a brace or white space in byte 8, so nothing valid is mistaken.
    """
    if head[4:8] == bytes(4) and head[8:9] and head[8] in b"{" + _WHITESPACE:
        return None
    found = None if head[4:8] == bytes(4) else _text(head)
    return found or _binary(head)


def _text(head: bytes) -> Foreign | None:
    if head.startswith(b"version https://git-lfs"):
        return _lfs_pointer(head)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(_WHITESPACE)
    if start.startswith(b"<"):
        message = "looks like an HTML or XML page, not weights (a failed download?)"
        return Foreign(Code.HTML_PAGE, message, _DOWNLOAD)
    if start[:1] in {b"{", b"["} and _is_text(head):
        message = "looks like a JSON document, not weights (an error page, or an index?)"
        return Foreign(Code.FOREIGN_FORMAT, message, _DOWNLOAD)
    return None


def _is_text(head: bytes) -> bool:
    return not any(byte < ord(" ") and byte not in _WHITESPACE for byte in head)


def _lfs_pointer(head: bytes) -> Foreign:
    size = _LFS_SIZE.search(head)
    expected = f" ({int(size[1])} bytes expected)" if size else ""
    message = f"is a Git LFS pointer{expected}, not the weights"
    return Foreign(Code.LFS_POINTER, message, "run `git lfs pull`, or `adaptool pull`")


def _binary(head: bytes) -> Foreign | None:
    if head.startswith(_ZIP):
        return _zip(head)
    where, tar = _TAR
    if _PICKLE.match(head) or head[where] == tar:
        return Foreign(Code.PICKLE_FILE, "is a PyTorch pickle or an old PyTorch archive", _CONVERT)
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            return Foreign(Code.FOREIGN_FORMAT, f"is {what}, not a safetensors file")
    if head[_FLATBUFFER_ID] == _ONNX_ADAPTER:
        message = "is an ONNX Runtime adapter (.onnx_adapter), whose names are a graph's inputs"
        return Foreign(Code.FOREIGN_FORMAT, message, "convert the adapter that it was made of")
    if _ONNX.match(head):
        return Foreign(Code.FOREIGN_FORMAT, "is an ONNX model, not a safetensors file")
    return None


def _zip(head: bytes) -> Foreign:
    length = int.from_bytes(head[_ZIP_NAME_LENGTH], "little")
    if head[_ZIP_NAME : _ZIP_NAME + length].endswith(b".npy"):
        message = "is a NumPy archive (npz), not a safetensors file"
        return Foreign(Code.FOREIGN_FORMAT, message)
    message = "is a zip archive, most likely a PyTorch pickle"
    return Foreign(Code.PICKLE_FILE, message, _CONVERT)
