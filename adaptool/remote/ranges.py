"""Parts of a remote file, as HTTP ranges bring them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from threading import RLock
from typing import TYPE_CHECKING

from adaptool.errands import Errands
from adaptool.errors import IntegrityError, RemoteError
from adaptool.findings import Code
from adaptool.remote.failures import cut_short, told
from adaptool.remote.hub import Origin, RemoteFile, answered, patiently
from adaptool.store.header import LENGTH_BYTES, read_header
from adaptool.store.small_values import MOST_BYTES
from adaptool.store.source import Source

if TYPE_CHECKING:
    from huggingface_hub.utils import httpx

FIRST_BYTES = 64 * 1024
"""What the first request asks for: most headers whole."""

AT_ONCE = 8
"""Requests for small parts that are under way together."""

_MOST_SKIPPED = 16 << 20  # of a server without ranges, before a part that is wanted
_MOST_ALIKE = 4 << 20  # bytes of small values that are brought because one of them was wanted
_GAP = 512  # two parts that lie closer are asked for as one

Span = tuple[int, int]
Ask = Callable[[int, int], bytes]


class Ranges:
    """Parts of one file of a commit, each by a request of its own; asked from any thread.

    Where the Hub sends the first request on to another host, the next ones go there directly, as
    long as it answers: a signed address holds for a while.
    """

    __slots__ = ("_address", "_file", "_origin", "_place")

    def __init__(self, origin: Origin, file: RemoteFile) -> None:
        self._origin, self._file = origin, file
        self._place = origin.file(file.path)
        self._address: str | None = None

    def __call__(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop).

        RemoteError (exit 6) where they do not come, IntegrityError (exit 9) where the file has
        another size than the commit says.
        """
        address = self._address
        if address is not None:
            try:
                with told(self._place):
                    return self._asked(start, stop, address)
            except RemoteError:
                self._address = None
        return patiently(lambda: self._asked(start, stop, None), self._place)

    def _asked(self, start: int, stop: int, address: str | None) -> bytes:
        span = f"bytes={start}-{stop - 1}"
        with answered(self._origin, self._file.path, span, address) as response:
            skipped = start
            if response.status_code == 206:
                skipped = 0
                _check_place(response, self._file.size, start, self._place)
            elif start > _MOST_SKIPPED:
                raise self._sends_no_parts()
            taken = _taken(response.iter_bytes(), skipped + stop - start)
            if response.history:
                self._address = str(response.url)
        if len(taken) < skipped + stop - start:
            raise cut_short(self._place, max(0, len(taken) - skipped), stop - start)
        return taken[skipped : skipped + stop - start]

    def _sends_no_parts(self) -> RemoteError:
        message = "the server does not send parts of files, so all of it would have to be read"
        hint = f"adaptool pull {self._origin.place} first"
        return RemoteError(message, code=Code.NETWORK, file=self._place, hint=hint)


def _check_place(response: httpx.Response, size: int, start: int, place: str) -> None:
    """IntegrityError where another part was sent, or the file has another size by now."""
    told_of = response.headers.get("Content-Range", "")
    span, _, whole = told_of.removeprefix("bytes ").partition("/")
    if span.partition("-")[0] == str(start) and whole in {str(size), "*"}:
        return
    message = f"asked for bytes from {start} of {size}, the server answers {told_of[:60]!r}"
    hint = "a server in between is at fault: see what HF_ENDPOINT is, and what proxies there are"
    raise IntegrityError(message, code=Code.INTEGRITY, file=place, hint=hint)


def _taken(chunks: Iterable[bytes], most: int) -> bytes:
    """The first `most` bytes; what follows is not waited for."""
    taken = bytearray()
    for chunk in chunks:
        taken += chunk
        if len(taken) >= most:
            break
    return bytes(taken)


class Parts:
    """What was read of one remote file so far, as a source of it; read from any thread.

    The header and small values are kept. The first small value that is wanted (a kohya alpha, a
    quantization state) brings all tensors of its kind, several at once. Larger parts are passed
    on, and only their digests stay, for `check_against`.
    """

    __slots__ = ("_ask", "_kept", "_lock", "_passed", "_starts", "name", "size")

    def __init__(self, name: str, size: int, ask: Ask) -> None:
        """`ask` gives the bytes [start, stop), called from several threads."""
        self.name, self.size, self._ask = name, size, ask
        self._starts: list[int] = []
        self._kept: list[bytes] = []
        self._passed: dict[Span, bytes] = {}
        self._lock = RLock()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; IntegrityError where the file ends before."""
        target = buffer.cast("B")
        if target.nbytes:
            with self._lock:
                target[:] = self._read(offset, offset + target.nbytes)

    def begin(self) -> None:
        """Read the first bytes, unless that was done."""
        with self._lock:
            if not self._starts and self.size:
                self._keep(0, self._ask(0, min(self.size, FIRST_BYTES)))

    def close(self) -> None:
        """Nothing is open."""

    def check_against(self, local: Source) -> None:
        """IntegrityError (exit 9) where `local` holds other bytes than those that were read here.

        What was decided by them would be wrong.
        """
        with self._lock:
            kept = zip(self._starts, self._kept, strict=True)
            spans = {(start, start + len(part)): sha256(part).digest() for start, part in kept}
            for (start, stop), digest in (spans | self._passed).items():
                content = bytearray(stop - start)
                local.read_into(start, memoryview(content))
                if sha256(content).digest() != digest:
                    raise self._differs(start, stop)

    def _differs(self, start: int, stop: int) -> IntegrityError:
        message = f"bytes {start} to {stop} were others when they were read for the plan"
        hint = "run again; where a damaged file lies in the Hub's cache, remove that first"
        return IntegrityError(message, code=Code.INTEGRITY, file=self.name, hint=hint)

    def _read(self, start: int, stop: int) -> bytes:
        if stop > self.size:
            message = f"has {self.size} bytes; bytes {start} to {stop} were to be read"
            raise IntegrityError(message, code=Code.INTEGRITY, file=self.name)
        self.begin()
        found = self._found(start, stop)
        if found is not None:
            return found
        if start == 0 and stop <= self._header_end():
            first = self._kept[0]
            self._kept[0] = first + self._ask(len(first), stop)
        elif stop - start <= MOST_BYTES:
            self._bring(self._alike(start, stop))
        else:
            return self._pass_on(start, stop)
        return self._found(start, stop) or b""

    def _found(self, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) where they are kept."""
        at = bisect_right(self._starts, start) - 1
        if at < 0 or stop > self._starts[at] + len(self._kept[at]):
            return None
        begin = start - self._starts[at]
        return self._kept[at][begin : begin + stop - start]

    def _keep(self, start: int, part: bytes) -> None:
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._kept.insert(at, part)

    def _header_end(self) -> int:
        length = int.from_bytes(self._kept[0][:LENGTH_BYTES], "little")
        return min(self.size, LENGTH_BYTES + length)

    def _pass_on(self, start: int, stop: int) -> bytes:
        part = self._ask(start, stop)
        self._passed[start, stop] = sha256(part).digest()
        return part

    def _alike(self, start: int, stop: int) -> list[Span]:
        """The spans of all small tensors with the last name of the one that lies here."""
        header = read_header(self)
        refs = {name: ref for name, ref in header.tensors.items() if ref.length <= MOST_BYTES}
        inside = (
            name for name, ref in refs.items() if ref.offset <= start < ref.offset + ref.length
        )
        kind = next(inside, "").rpartition(".")[2]
        alike = [
            (ref.offset, ref.offset + ref.length)
            for name, ref in refs.items()
            if kind and ref.length and name.rpartition(".")[2] == kind
        ]
        spans = [(start, stop), *alike]
        if sum(end - begin for begin, end in spans) > _MOST_ALIKE:
            return [(start, stop)]
        return [span for span in _joined(spans) if self._found(*span) is None]

    def _bring(self, spans: list[Span]) -> None:
        with Errands[bytes]("adaptool-ranges", AT_ONCE) as errands:
            parts = [errands.send(partial(self._ask, *span)) for span in spans]
            for (start, _), part in zip(spans, parts, strict=True):
                self._keep(start, part.result())


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """The spans in order, those that overlap or nearly touch as one."""
    ordered = sorted(spans)
    start, stop = ordered[0]
    for begin, end in ordered[1:]:
        if begin > stop + _GAP:
            yield start, stop
            start, stop = begin, end
        stop = max(stop, end)
    yield start, stop
