"""A source that is bytes, for tests that build thousands of files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemorySource:
    """The Source protocol over `content`."""

    content: bytes
    name: str = "memory.safetensors"

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; a read past the end is a bug of the reader."""
        part = self.content[offset : offset + buffer.nbytes]
        assert len(part) == buffer.nbytes
        buffer[:] = part

    def close(self) -> None:
        """Nothing to let go of."""
