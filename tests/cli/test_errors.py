"""How errors end: one line, a hint, an exit code, and the same as JSON."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import ADAPTER, BASE, environment, patched, run, run_patched

KEYS = {"code", "exit", "file", "tensor", "field", "message", "hint", "retryable"}


def _raising(statement: str) -> str:
    """A patch after which `inspect` runs `statement`."""
    return f"""
from adaptool import api, errors, findings
def inspect(path, **_):
    {statement}
api.inspect = inspect
"""


def test_missing_file_is_one_line_with_a_hint() -> None:
    """No traceback: the line names the path."""
    answer = run("inspect", "no/such/adapter")
    assert answer.code == 2
    assert answer.out == ""
    first, *hints = answer.err.splitlines()
    assert first.startswith("error: no/such/adapter: ")
    assert all(hint.startswith("hint: ") for hint in hints)


def test_error_as_json_has_the_contracts_keys() -> None:
    """--json puts the error on stdout, alone, and nothing on stderr."""
    answer = run("inspect", "--json", "no/such/adapter")
    assert (answer.code, answer.err) == (2, "")
    assert set(answer.json) == {"schema", "error", "errors"}
    assert answer.json["schema"] == 1
    assert set(answer.json["error"]) == KEYS
    assert answer.json["error"]["code"] == "not-found"
    assert answer.json["error"]["exit"] == 2
    assert answer.json["errors"] == [answer.json["error"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "no such command: 'bogus'"),
        (["merge", "--bogus"], "--bogus"),
        (["merge", BASE], "ADAPTER"),
        (["merge", BASE, ADAPTER, "out", "--weight", "heavy"], "no finite number"),
        (["merge", BASE, ADAPTER, "out", "--weight", "nan"], "no finite number"),
        (["merge", BASE, ADAPTER, "out", "--add", f"{ADAPTER}=x"], "no finite number"),
        (["merge", BASE, ADAPTER, "out", "--dtype", "int4"], "bfloat16"),
        (["merge", BASE, ADAPTER, "out", "--max-shard-size", "5 apples"], "no size"),
        (["merge", BASE, ADAPTER, "out", "--max-shard-size", "0"], "less than one byte"),
        (["merge", BASE, ADAPTER, "out", "--threads", "0"], "x>=1"),
        (["merge", BASE, ADAPTER, "out", "--device", "tpu"], "no device"),
        (["merge", BASE, ADAPTER, ""], "no path"),
        (["inspect"], "PATH"),
    ],
)
def test_usage_error_is_exit_2_in_both_shapes(arguments: list[str | Path], said: str) -> None:
    """What click refuses looks like every other error."""
    plain = run(*arguments)
    assert plain.code == 2
    assert plain.err.startswith("error: ")
    assert said in plain.err.splitlines()[0]
    assert "--help" in plain.err.splitlines()[1]
    as_json = run(*arguments, "--json")
    assert as_json.code == 2
    assert as_json.json["error"]["code"] == "usage"
    assert said in as_json.json["error"]["message"]


def test_no_command_shows_the_help_on_stderr() -> None:
    """`adaptool` alone is a usage error that says what there is."""
    answer = run()
    assert (answer.code, answer.out) == (2, "")
    assert "merge" in answer.err


def test_uri_is_refused_where_a_path_must_stand() -> None:
    """What cannot be written to, or not be read yet, is exit 4 with what to do."""
    for arguments in (("inspect", "s3://o/n"), ("merge", BASE, ADAPTER, "s3://o/n")):
        answer = run(*arguments, "--json")
        assert answer.code == 4
        assert answer.json["error"]["code"] == "unsupported"
        assert answer.json["error"]["file"] == arguments[-1]
        assert "adaptool pull" in answer.json["error"]["hint"]


def test_unexpected_exception_is_exit_70_without_a_traceback() -> None:
    """A bug of ours is one line that says how to see more."""
    answer = run_patched(_raising("raise KeyError('lost')"), "inspect", "x")
    assert answer.code == 70
    assert answer.err.splitlines() == [
        "error: unexpected KeyError: 'lost'",
        "hint: this is a bug of adaptool; set ADAPTOOL_DEBUG=1 for the traceback",
    ]


def test_debug_shows_the_traceback() -> None:
    """ADAPTOOL_DEBUG=1 adds the traceback and keeps the exit code."""
    statement = _raising("raise KeyError('lost')")
    answer = run_patched(statement, "inspect", "x", env={"ADAPTOOL_DEBUG": "1"})
    assert answer.code == 70
    assert "Traceback" in answer.err


def test_memory_error_is_exit_7() -> None:
    """Running out of memory is no bug."""
    answer = run_patched(_raising("raise MemoryError"), "inspect", "x", "--json")
    assert answer.code == 7
    assert answer.json["error"]["code"] == "out-of-memory"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("CheckFailed", 1),
        ("UsageError", 2),
        ("InputError", 3),
        ("MismatchError", 4),
        ("OutputError", 5),
        ("RemoteError", 6),
        ("ResourceError", 7),
        ("BusyError", 8),
        ("IntegrityError", 9),
        ("InternalError", 70),
    ],
)
def test_error_class_decides_the_exit_code(name: str, code: int) -> None:
    """Design's table of exit codes, class by class."""
    statement = f"raise errors.{name}('m', code=findings.Code.INTEGRITY, file='f', tensor='t')"
    answer = run_patched(_raising(statement), "inspect", "x")
    assert answer.code == code
    assert answer.err == "error: f: t: m\n"


def test_text_from_files_cannot_steer_the_terminal() -> None:
    """Escape sequences and line ends in a tensor's name are printed as escapes."""
    name = r"'\x1b[2J\nrm\u202e'"
    statement = f"raise errors.InputError('m', code=findings.Code.INTEGRITY, tensor={name})"
    answer = run_patched(_raising(statement), "inspect", "x")
    assert answer.err == "error: \\x1b[2J\\nrm\\u202e: m\n"


def test_several_bad_inputs_are_all_told() -> None:
    """Every path that cannot be read is in `errors`, at most 20."""
    answer = run("inspect", "--json", *(f"absent{number}" for number in range(25)))
    assert answer.code == 2
    assert [error["file"] for error in answer.json["errors"]] == [
        f"absent{number}" for number in range(20)
    ]


WAITS = """
import signal
from adaptool import api
def inspect(path, **_):
    try:
        print("ready", file=sys.stderr, flush=True)
        signal.pause()
    finally:
        print("cleaning", file=sys.stderr, flush=True)
        {then}
api.inspect = inspect
"""


def _start(then: str, *flags: str) -> subprocess.Popen[str]:
    return _waiting(WAITS.format(then=then), *flags)


def _waiting(patch: str, *flags: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        patched(patch, "inspect", "x", *flags),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_unwinds_and_is_reported(number: signal.Signals) -> None:
    """Context managers run, then the exit code is 128 + N."""
    process = _start("pass")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert err.splitlines()[:2] == ["cleaning", f"error: stopped by {number.name}"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_at_once(number: signal.Signals) -> None:
    """Nobody has to wait for a clean-up that hangs."""
    process = _start("signal.pause()")
    process.send_signal(number)
    assert process.stderr is not None
    assert process.stderr.readline() == "cleaning\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == ""


def test_signal_is_no_finding() -> None:
    """Whoever gathers adaptool's errors does not gather a signal."""
    patch = f"""{WAITS.format(then="pass")}
from adaptool import errors
def gathering(path, **_):
    try:
        inspect(path)
    except errors.AdaptoolError:
        print("swallowed", file=sys.stderr)
api.inspect = gathering
"""
    process = _waiting(patch)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "swallowed" not in err


def test_signal_as_json() -> None:
    """A supervisor that reads JSON learns that trying again is right."""
    process = _start("pass", "--json")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert '"code": "interrupted"' in out
    assert '"retryable": true' in out


def _into(stdout: int, *arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "adaptool", *map(str, arguments)],
        env=environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", ADAPTER], ["inspect", "--json", ADAPTER]]
)
def test_reader_that_left_is_exit_141_without_a_word(arguments: list[str | Path]) -> None:
    """`adaptool ... | head` ends as other tools do."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert _into(writing, *arguments) == (141, "")
    finally:
        os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", ADAPTER], ["inspect", "--json", ADAPTER]]
)
def test_full_disk_behind_stdout_is_exit_5(arguments: list[str | Path]) -> None:
    """An answer that nobody gets is no success."""
    with Path("/dev/full").open("w") as full:
        code, err = _into(full.fileno(), *arguments)
    assert code == 5
    assert "Traceback" not in err
    if "--json" not in arguments:
        assert f"standard output: could not be written: {os.strerror(errno.ENOSPC)}" in err


def test_a_mistyped_command_gets_the_nearest_one_named() -> None:
    """Exit 2; a word that is like none gets no guess."""
    near = run("murge", "a", "b")
    assert (near.code, "did you mean merge?" in near.err) == (2, True)
    far = run("frobnicate")
    assert (far.code, "did you mean" in far.err) == (2, False)
