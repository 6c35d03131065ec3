"""Parts of a file on the Hub: what is asked for, what is kept, which answers are refused.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from adaptool.errors import IntegrityError, InternalError, RemoteError
from adaptool.remote.arrivals import HubSource
from adaptool.remote.hub import Origin, RemoteFile, client
from adaptool.remote.ranges import FIRST_BYTES, Parts, Ranges
from adaptool.store.disk import Disk
from adaptool.store.header import read_header
from adaptool.store.small_values import read_small
from bad_builders import header_bytes
from hub_stand_in import Before, Drop, Refuse, StandIn, at_hand

FILE = "model.safetensors"


def _file(count: int) -> bytes:
    """`count` large tensors, each with a small one beside it; the bytes differ everywhere."""
    header: dict[str, object] = {}
    content = bytearray()
    for place in range(count):
        for name, size in (("weight", 40_000), ("scale", 2)):
            seed = hashlib.sha256(f"{place} {name}".encode()).digest()
            begin = len(content)
            content += (seed * (size // 32 + 1))[:size]
            entry = {"dtype": "U8", "shape": [size], "data_offsets": [begin, len(content)]}
            header[f"layers.{place}.{name}"] = entry
    return header_bytes(header) + bytes(content)


LATER = 49  # small values behind the first request's end, of 50
CONTENT = _file(50)  # 2 MB, a header of about 8 KB
WIDE = _file(700)  # 28 MB, a header of about 100 KB


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A Hub with both files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with StandIn() as server:
        server.add("me/small", {FILE: CONTENT})
        server.add("me/wide", {FILE: WIDE})
        at_hand(monkeypatch, server)
        yield server


def _origin(hub: StandIn, repo: str) -> tuple[Origin, RemoteFile]:
    content = hub.repos[repo].files[FILE]
    digest = hashlib.sha256(content).hexdigest()
    origin = Origin(client(), repo, hub.repos[repo].head, f"hf://{repo}")
    return origin, RemoteFile(FILE, len(content), "0" * 40, digest)


def _parts(hub: StandIn, repo: str = "me/small") -> Parts:
    origin, file = _origin(hub, repo)
    return Parts("here", file.size, Ranges(origin, file))


def _source(hub: StandIn, tmp_path: Path) -> HubSource:
    origin, file = _origin(hub, "me/small")
    return HubSource(origin, file, _parts(hub), tmp_path / "arrived", Disk())


def _read(source: Parts | HubSource, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    source.read_into(start, memoryview(buffer))
    return bytes(buffer)


def _ranges(hub: StandIn) -> list[str]:
    return [each.headers.get("range", "all") for each in hub.asked("GET", "/resolve/")]


def test_header_costs_one_request(hub: StandIn) -> None:
    """However often it is read."""
    parts = _parts(hub)
    assert len(read_header(parts).tensors) == 100
    assert read_header(parts).raw == CONTENT[: len(read_header(parts).raw)]
    assert _ranges(hub) == [f"bytes=0-{FIRST_BYTES - 1}"]


def test_longer_header_costs_two(hub: StandIn) -> None:
    """The second request is for the rest of it alone."""
    parts = _parts(hub, "me/wide")
    header = read_header(parts)
    assert header.raw == WIDE[: len(header.raw)]
    rest = f"bytes={FIRST_BYTES}-{len(header.raw) - 1}"
    assert _ranges(hub) == [f"bytes=0-{FIRST_BYTES - 1}", rest]


def test_first_small_value_brings_all_of_its_kind(hub: StandIn) -> None:
    """And no byte of the weights between them."""
    tensors = read_header(_parts(hub)).tensors
    scales = [ref for name, ref in tensors.items() if name.endswith("scale")]
    before = hub.sent
    for ref in reversed(scales):
        assert read_small(ref) == CONTENT[ref.offset : ref.offset + ref.length]
        assert (len(_ranges(hub)), hub.sent - before) == (1 + LATER, 2 * LATER)


def test_any_part_is_the_files_own(hub: StandIn) -> None:
    """Across what is kept, beside it, and larger than what is kept."""
    parts = _parts(hub)
    size = len(CONTENT)
    spans = [(0, 8), (60_000, 70_000), (65_530, 65_540), (1_000_000, 1_500_000), (size - 9, size)]
    for start, stop in [*spans, *spans]:
        assert _read(parts, start, stop) == CONTENT[start:stop]


def test_server_without_ranges_is_read_as_far_as_needed(hub: StandIn) -> None:
    """It sends the file from its beginning; what follows is not waited for."""
    hub.ranges = False
    parts = _parts(hub)
    assert _read(parts, 0, 100) == CONTENT[:100]
    assert _read(parts, 500_000, 500_100) == CONTENT[500_000:500_100]


def test_far_part_of_a_server_without_ranges_is_refused(hub: StandIn) -> None:
    """All before it would be sent for nothing: exit 6, and the hint says what to do."""
    hub.ranges = False
    origin, file = _origin(hub, "me/small")
    far = RemoteFile(FILE, 1 << 30, file.oid, file.sha256)
    with pytest.raises(RemoteError) as caught:
        Ranges(origin, far)(1 << 29, (1 << 29) + 10)
    assert "adaptool pull hf://me/small" in str(caught.value.hint)


def test_parts_are_asked_for_where_the_hub_sent_the_first(hub: StandIn) -> None:
    """Once at the Hub, then elsewhere without the token; a signature that expires is made anew."""
    with StandIn() as elsewhere:
        hub.cdn = elsewhere
        scales = [ref for name, ref in read_header(_parts(hub)).tensors.items() if "scale" in name]
        elsewhere.when("GET", "/lfs/", Refuse(403))
        for ref in reversed(scales):
            assert read_small(ref) == CONTENT[ref.offset : ref.offset + ref.length]
        assert len(_ranges(hub)) < 20
        assert len(elsewhere.log) >= 51
        assert not any("authorization" in each.headers for each in elsewhere.log)


def test_part_that_breaks_off_is_asked_for_again(hub: StandIn) -> None:
    """A dropped connection and a server that is busy."""
    hub.when("GET", "/resolve/", Drop(after=10))
    hub.when("GET", "/resolve/", Refuse(503, {"Retry-After": "0"}))
    assert _read(_parts(hub), 0, 100) == CONTENT[:100]
    assert len(_ranges(hub)) == 3


def test_file_of_another_size_is_exit_9(hub: StandIn) -> None:
    """The answer says how large the whole is."""
    parts = _parts(hub)
    hub.repos["me/small"].files[FILE] = CONTENT + b"more"
    with pytest.raises(IntegrityError, match=f"of {len(CONTENT)}"):
        _read(parts, 0, 100)


def test_part_outside_the_file_is_exit_6(hub: StandIn) -> None:
    """Status 416 is not tried again."""
    hub.when("GET", "/resolve/", Refuse(416))
    with pytest.raises(RemoteError, match="416"):
        _read(_parts(hub), 0, 100)
    assert len(_ranges(hub)) == 1


def test_part_behind_the_end_is_refused_unasked(hub: StandIn) -> None:
    """A header that says more than the file holds."""
    with pytest.raises(IntegrityError, match="were to be read"):
        _read(_parts(hub), len(CONTENT) - 1, len(CONTENT) + 1)
    assert hub.log == []


def test_what_has_not_arrived_is_never_handed_to_the_kernel(hub: StandIn, tmp_path: Path) -> None:
    """Only the checked file has a descriptor, and only while it is here."""
    source = _source(hub, tmp_path)
    with pytest.raises(InternalError):
        _ = source.fd
    source.arrive()
    source.arrive()
    assert source.fd >= 0
    assert _read(source, 0, len(CONTENT)) == CONTENT
    assert (tmp_path / "arrived").stat().st_size == len(CONTENT)
    source.leave()
    assert not (tmp_path / "arrived").exists()
    for read in (lambda: source.fd, lambda: _read(source, 0, 9)):
        with pytest.raises(InternalError, match="not here"):
            read()
    source.arrive()
    assert _read(source, 5, 9) == CONTENT[5:9]
    source.close()
    assert [each for each in _ranges(hub) if each == "all"] == ["all", "all"]


def test_parts_that_were_never_checked_are_told(hub: StandIn, tmp_path: Path) -> None:
    """A writer asks before it publishes."""
    source = _source(hub, tmp_path)
    source.check_unchanged()
    _read(source, 0, 9)
    with pytest.raises(InternalError, match="never checked"):
        source.check_unchanged()
    source.arrive()
    source.leave()
    source.check_unchanged()


def test_arrival_that_nobody_waits_for_breaks_off(hub: StandIn, tmp_path: Path) -> None:
    """`leave` returns at once, the download ends with its next bytes, the disk is free again."""
    source = _source(hub, tmp_path)
    asked, told = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        told.wait(60)

    hub.when("GET", "/resolve/", Before(hold))
    caught: list[BaseException] = []

    def arrive() -> None:
        try:
            source.arrive()
        except RemoteError as error:
            caught.append(error)

    thread = threading.Thread(target=arrive)
    thread.start()
    assert asked.wait(60)
    source.leave()
    told.set()
    thread.join(60)
    assert "nobody waits" in str(caught[0])
    assert not (tmp_path / "arrived").exists()
