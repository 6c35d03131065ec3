"""The heatmap that inspect draws with characters."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from bad_adapters import PREFIX, Q_PROJ, good_pair
from command_line import ADAPTER, BASE, environment, run
from in_process import done

BLOCKS = set("▁▂▃▄▅▆▇█")
ESCAPE = "\x1b"


def _rows(text: str) -> dict[str, str]:
    """Target -> blocks, of the heatmap's lines."""
    lines = [line.split() for line in text.splitlines() if BLOCKS & set(line)]
    return {words[0]: words[1] for words in lines}


def _on_terminal(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Stdout of `python -m adaptool ARGUMENTS` where it is a terminal."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptool", *map(str, arguments)],
        env=environment({"TERM": "xterm-256color", "COLUMNS": "200", **(env or {})}),
        stdout=inner,
        stderr=subprocess.DEVNULL,
    )
    os.close(inner)
    found = b""
    try:
        while piece := os.read(terminal, 65536):
            found += piece
    except OSError:  # Linux says EIO where the other end of a terminal is closed
        pass
    finally:
        os.close(terminal)
        process.wait(timeout=120)
    return found.decode()


def test_each_target_has_a_block_for_each_layer() -> None:
    """Seven targets, two layers; the largest value has the tallest block."""
    out = done("inspect", ADAPTER, "--values").out
    rows = _rows(out)
    assert len(rows) == 7
    assert {len(blocks) for blocks in rows.values()} == {2}
    assert any("█" in blocks for blocks in rows.values())
    assert any("▁" in blocks for blocks in rows.values())
    assert "|delta| of model.layers, 0 to 1" in out


def test_base_makes_it_relative() -> None:
    """|delta| / |W| in percent, and a column of the table."""
    out = done("inspect", ADAPTER, "--values", "--base", BASE).out
    assert "|delta| / |W| of model.layers, 0 to 1" in out
    assert "norm / base" in out


def test_headers_alone_draw_nothing() -> None:
    """Without --values there is nothing to draw."""
    assert not BLOCKS & set(done("inspect", ADAPTER).out)


def test_one_layer_draws_nothing(tmp_path: Path) -> None:
    """A heatmap of one column is none."""
    pair = good_pair()
    pair.tensors = {name: value for name, value in pair.tensors.items() if ".0." in name}
    _, adapter = pair.write(tmp_path)
    assert not BLOCKS & set(done("inspect", adapter, "--values").out)


def test_layer_without_a_target_is_blank(tmp_path: Path) -> None:
    """Places keep their layer."""
    pair = good_pair()
    for side in "AB":
        del pair.tensors[f"{PREFIX}{Q_PROJ}.lora_{side}.weight"]
    _, adapter = pair.write(tmp_path)
    lines = done("inspect", adapter, "--values").out.splitlines()
    (line,) = [line for line in lines if line.startswith("  self_attn.q_proj")]
    assert line[len("  self_attn.q_proj  ")] == " "
    assert line[len("  self_attn.q_proj  ") + 1] in BLOCKS


def test_terminal_has_colours_unless_no_color_is_set() -> None:
    """The blocks stay, the escapes go."""
    coloured = _on_terminal("inspect", ADAPTER, "--values")
    assert ESCAPE in coloured
    plain = _on_terminal("inspect", ADAPTER, "--values", env={"NO_COLOR": "1"})
    assert ESCAPE not in plain
    assert len(_rows(plain)) == 7


def test_terminal_that_knows_ascii_only_gets_digits() -> None:
    """8 is the tallest."""
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    out = run("inspect", ADAPTER, "--values", env=env).out
    (line,) = [line for line in out.splitlines() if line.startswith("  mlp.down_proj ")]
    assert set(line.split()[1]) <= set("12345678")
    assert "\\u" not in line


def test_similarity_is_a_table(tmp_path: Path) -> None:
    """A number for each adapter, and its path."""
    _, adapter = good_pair().write(tmp_path)
    out = done("inspect", ADAPTER, adapter, "--values").out
    assert "similarity (cosine between whole adapters)" in out
    assert f"[2] {adapter}" in out
