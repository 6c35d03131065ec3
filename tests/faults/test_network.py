"""A network that is slow, absent, redirected or full of ears: retries, ranges, and no token shown.

The Hub is the stand-in of tests/hub_stand_in.py; the client is the real one.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from adaptool.remote import hub as remote
from command_line import ADAPTER, environment, run
from hub_requests import sha256_of
from hub_stand_in import READER, TOKEN, Before, Corrupt, Drop, Refuse, StandIn, at_hand
from hub_stand_in import environment as pointing
from in_process import ask, done, refused

FILES = {path.name: path.read_bytes() for path in ADAPTER.iterdir()}
WEIGHTS = "adapter_model.safetensors"
URI = "hf://me/adapter"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub with the fixture adapter on it, and a token that may write there."""
    with StandIn() as server:
        server.add("me/adapter", FILES)
        at_hand(monkeypatch, server, TOKEN)
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been slept."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def _pulled(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "adaptool.json"}


def test_host_that_has_no_address_is_exit_6_after_a_few_tries(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """Retryable; the waits grow."""

    def unknown(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refused(6, "pull", URI, tmp_path / "out")
    assert (error["code"], error["retryable"]) == ("network", True)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert hub.log == []


def test_port_where_nobody_listens_is_exit_6(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """The same for a Hub that is down, for pull and push."""
    del hub
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    for command in (("pull", URI, tmp_path / "out"), ("push", ADAPTER, URI)):
        error = refused(6, *command)
        assert (error["code"], error["retryable"]) == ("network", True)
    assert len(waits) == 10


@pytest.mark.parametrize("where", ["/models/me/adapter$", f"/resolve/.*{WEIGHTS}"])
def test_answer_that_does_not_come_is_asked_for_again(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """After the time that one answer is given; the second try is answered."""
    monkeypatch.setattr(remote, "_TIMEOUT", 0.2)
    gone = threading.Event()
    hub.when("GET", where, Before(lambda: gone.wait(30)))
    done("pull", URI, tmp_path / "out")
    gone.set()
    assert len(hub.asked("GET", where)) == 2
    assert _pulled(tmp_path / "out") == FILES


def test_rate_limit_is_waited_for_as_long_as_it_asks(
    hub: StandIn, tmp_path: Path, waits: list[float]
) -> None:
    """Retry-After in seconds, of metadata and of files."""
    hub.when("GET", "/models/me/adapter$", Refuse(429, {"Retry-After": "7"}))
    hub.when("GET", "/resolve/", Refuse(429, {"Retry-After": "11"}))
    done("pull", URI, tmp_path / "out")
    assert [seconds for seconds in waits if seconds] == [7.0, 11.0]


def test_server_error_is_tried_again_with_growing_waits(
    hub: StandIn, tmp_path: Path, waits: list[float]
) -> None:
    """And what never gets well is exit 6, retryable."""
    hub.when("GET", "/resolve/", Refuse(502), times=99)
    error = refused(6, "pull", URI, tmp_path / "out")
    assert (error["code"], error["retryable"]) == ("network", True)
    assert "status 502" in str(error["message"])
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_connection_that_never_holds_is_exit_6_and_the_next_run_goes_on(
    hub: StandIn, tmp_path: Path, waits: list[float]
) -> None:
    """What came before is kept and not asked for again."""
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=40_000))
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=0), times=9)
    error = refused(6, "pull", URI, tmp_path / "out")
    assert (error["code"], error["retryable"], len(waits)) == ("network", True, 5)
    assert not (tmp_path / "out").exists()
    hub.log.clear()
    hub.forget()
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES
    ranges = [each.headers.get("range") for each in hub.asked("GET", f"/resolve/.*{WEIGHTS}")]
    assert set(ranges) == {"bytes=40000-"}


def test_server_without_ranges_sends_the_file_from_its_beginning(
    hub: StandIn, tmp_path: Path
) -> None:
    """What broke off begins again, and the bytes are the commit's."""
    hub.ranges = False
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=30_000))
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES


def test_rest_of_another_file_is_not_joined_to_a_beginning(hub: StandIn, tmp_path: Path) -> None:
    """A file that changed between two connections has the wrong digest: exit 9, nothing written."""
    other = {WEIGHTS: bytes(len(FILES[WEIGHTS]))}
    where = f"/resolve/.*{WEIGHTS}"
    hub.when("GET", where, Drop(after=30_000))
    hub.when("GET", where, Before(lambda: hub.repos["me/adapter"].files.update(other)))
    assert refused(9, "pull", URI, tmp_path / "out")["code"] == "integrity"
    assert not (tmp_path / "out").exists()


def test_beginning_of_another_file_is_downloaded_again(
    hub: StandIn, tmp_path: Path, waits: list[float]
) -> None:
    """What an earlier run left was damaged: its digest says so, and the file is begun again."""
    del waits
    where = f"/resolve/.*{WEIGHTS}"
    hub.when("GET", where, Drop(after=40_000))
    hub.when("GET", where, Refuse(403))
    refused(6, "pull", URI, tmp_path / "out")
    (left,) = tmp_path.rglob(f"*{WEIGHTS}*")
    left.write_bytes(b"damaged!" + left.read_bytes()[8:])
    done("pull", URI, tmp_path / "out")
    assert _pulled(tmp_path / "out") == FILES


def test_same_size_with_other_bytes_is_taken_by_the_client_and_refused_by_pull(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf_hub_download compares sizes only; pull compares sha256: exit 9 with both digests."""
    from huggingface_hub import constants, hf_hub_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.when("GET", f"/resolve/.*{WEIGHTS}", Corrupt(), times=2)
    taken = Path(hf_hub_download("me/adapter", WEIGHTS, endpoint=hub.url)).read_bytes()
    assert (len(taken), taken == FILES[WEIGHTS]) == (len(FILES[WEIGHTS]), False)
    error = refused(9, "pull", URI, tmp_path / "out")
    assert (error["code"], error["file"]) == ("integrity", f"{URI}: {WEIGHTS}")
    for content in (taken, FILES[WEIGHTS]):
        assert sha256_of(content) in str(error["message"])
    assert not (tmp_path / "out").exists()


def test_other_host_gets_no_token(hub: StandIn, tmp_path: Path) -> None:
    """Large files come from where the Hub redirects to, by an address that is signed."""
    with StandIn() as cdn:
        hub.cdn = cdn
        hub.when("GET", f"/resolve/.*{WEIGHTS}", Drop(after=0))
        cdn.when("GET", "/lfs/", Drop(after=30_000))
        done("pull", URI, tmp_path / "out")
        assert _pulled(tmp_path / "out") == FILES
        assert [each.headers.get("range") for each in cdn.log] == [None, "bytes=30000-"]
        assert all("authorization" not in each.headers for each in cdn.log)
    asked = hub.asked("GET", f"/resolve/.*{WEIGHTS}")
    assert {each.headers.get("authorization") for each in asked} == {f"Bearer {TOKEN}"}


def test_signed_address_is_not_shown(hub: StandIn, tmp_path: Path) -> None:
    """Where the other host refuses, neither its signature nor the token is in what is said."""
    with StandIn() as cdn:
        hub.cdn = cdn
        cdn.when("GET", "/lfs/", Refuse(403, {"X-Error-Message": "bad /x?Signature=secret"}))
        answer = ask("pull", URI, tmp_path / "out", "--json")
    assert (answer.code, answer.json["error"]["code"]) == (6, "authentication")
    assert "Signature" not in answer.out + answer.err


def test_missing_file_is_named(hub: StandIn, tmp_path: Path) -> None:
    """Exit 6, and which one of them."""
    missing = Refuse(404, {"X-Error-Code": "EntryNotFound"})
    hub.when("GET", f"/resolve/.*{WEIGHTS}", missing)
    assert refused(6, "pull", URI, tmp_path / "out")["file"] == f"{URI}: {WEIGHTS}"


@pytest.mark.parametrize(
    "refused_at",
    [
        ("pull", "GET", "/models/"),
        ("pull", "GET", "/tree/"),
        ("pull", "GET", "/resolve/"),
        ("push", "GET", "/tree/"),
        ("push", "GET", "/xet-write-token/"),
        ("push", "POST", "/preupload/"),
        ("push", "POST", "/objects/batch"),
        ("push", "POST", "/commit/"),
    ],
)
def test_token_is_in_no_output(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_at: tuple[str, str, str]
) -> None:
    """A server that repeats the token in its refusals; with ADAPTOOL_DEBUG=1 in tracebacks too."""
    verb, method, where = refused_at
    what = {"pull": ("pull", URI, tmp_path / "out"), "push": ("push", ADAPTER, "hf://me/new")}[verb]
    said = {"X-Error-Message": f"token {TOKEN} (Bearer {TOKEN}) lacks the right"}
    hub.add("me/new", {})
    hub.when(method, where, Refuse(403, said), times=4)
    for debug in ("", "1"):
        monkeypatch.setenv("ADAPTOOL_DEBUG", debug)
        for form in ([], ["--json"]):
            answer = ask(*what, *form)
            assert answer.code == 6
            assert "token *** (*** lacks the right" in answer.out + answer.err
            assert ("Traceback" in answer.err) is bool(debug)
            assert TOKEN.removeprefix("hf_") not in answer.out + answer.err


def test_token_of_another_kind_is_in_no_output(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub of one's own may hand out tokens that do not look like the Hub's."""
    monkeypatch.setenv("HF_TOKEN", "my-own-secret-word")
    said = {"X-Error-Message": "nobody knows my-own-secret-word here"}
    hub.when("GET", "/models/", Refuse(401, said))
    answer = ask("pull", URI, tmp_path / "out", "--json")
    assert answer.code == 6
    assert "nobody knows *** here" in answer.out
    assert "secret-word" not in answer.out + answer.err


def test_token_is_in_no_output_of_a_process(hub: StandIn, tmp_path: Path) -> None:
    """The real command, with the client's own logging and warnings."""
    env = {**pointing(hub, READER), "ADAPTOOL_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    hub.when("GET", "/resolve/", Refuse(503, {"Retry-After": "0"}), times=2)
    answer = run("pull", URI, tmp_path / "out", env=env)
    assert answer.code == 0
    assert READER not in answer.out + answer.err
    answer = run("push", ADAPTER, URI, env=env)
    assert answer.code == 6
    assert "Traceback" in answer.err
    assert READER not in answer.out + answer.err


def test_interrupted_reading_of_headers_is_not_waited_for(hub: StandIn, tmp_path: Path) -> None:
    """Ctrl-C while a range does not come: exit 130 at once, though the client still waits."""
    running: list[subprocess.Popen[bytes]] = []
    ended = threading.Event()

    def stall() -> None:
        if running[0].poll() is None:
            running[0].send_signal(signal.SIGINT)
            ended.wait(120)

    hub.when("GET", f"/resolve/.*{WEIGHTS}", Before(stall), times=9)
    env = environment({**pointing(hub), "HF_HUB_CACHE": str(tmp_path / "cache")})
    command = [sys.executable, "-m", "adaptool", "inspect", URI]
    running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE))
    try:
        _, said = running[0].communicate(timeout=30)  # the client's own patience is 60 seconds
    finally:
        ended.set()
        running[0].kill()
    assert (running[0].returncode, b"stopped by SIGINT" in said) == (130, True), said
