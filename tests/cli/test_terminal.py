"""What a terminal is shown, and a pipe is not."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from command_line import ADAPTER, BASE, environment, run

ESCAPE = "\x1b"


def _on_terminal(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[str, str]:
    """Stdout (a pipe) and stderr (a terminal) of `python -m adaptool ARGUMENTS`."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptool", *map(str, arguments)],
        env=environment({"TERM": "xterm-256color", **(env or {})}),
        stdout=subprocess.PIPE,
        stderr=inner,
        text=True,
    )
    os.close(inner)
    err = _drained(terminal)
    out, _ = process.communicate(timeout=120)
    return out, err


def _drained(terminal: int) -> str:
    found = b""
    try:
        while piece := os.read(terminal, 65536):
            found += piece
    except OSError:
        # Linux says EIO where the other end of a terminal is closed.
        pass
    finally:
        os.close(terminal)
    return found.decode()


def test_bar_is_drawn_where_somebody_watches(tmp_path: Path) -> None:
    """Stderr on a terminal gets a bar; stdout keeps its one line."""
    out, err = _on_terminal("merge", BASE, ADAPTER, tmp_path / "out")
    assert "bytes" in err
    assert len(out.splitlines()) == 1
    assert ESCAPE not in out


def test_quiet_draws_no_bar(tmp_path: Path) -> None:
    """--quiet is quiet on a terminal, too."""
    assert _on_terminal("merge", "-q", BASE, ADAPTER, tmp_path / "out") == ("", "")


def test_pipe_gets_no_bar_and_no_escape(tmp_path: Path) -> None:
    """A log holds text only."""
    answer = run("merge", BASE, ADAPTER, tmp_path / "out", env={"TERM": "xterm-256color"})
    assert answer.code == 0
    assert ESCAPE not in answer.out + answer.err
    assert "━" not in answer.err


def test_error_is_coloured_unless_no_color_is_set() -> None:
    """NO_COLOR is honoured."""
    assert ESCAPE in _on_terminal("inspect", "absent")[1]
    plain = _on_terminal("inspect", "absent", env={"NO_COLOR": "1"})[1]
    assert ESCAPE not in plain
    assert plain.startswith("error: absent: ")


def test_line_in_a_pipe_is_not_wrapped(tmp_path: Path) -> None:
    """A name as long as it may be stays on one line, so that grep finds it."""
    name = "x" * 250
    answer = run("inspect", tmp_path / name, env={"COLUMNS": "40"})
    assert name in answer.err.splitlines()[0]


def test_terminal_that_knows_ascii_only_is_no_error(tmp_path: Path) -> None:
    """A name that the terminal's encoding lacks is escaped."""
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    answer = run("inspect", tmp_path / "größe", env=env)
    assert answer.code == 2
    assert "gr\\xf6\\xdfe" in answer.err
