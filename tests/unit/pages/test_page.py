"""The page that inspect draws: well-formed, alone, complete, and nobody else's markup."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from adaptool import api
from adaptool.errors import OutputError, UsageError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.inspected import Inspected
from adaptool.model.results import AdapterSummary, ModuleRow
from adaptool.pages.page import page
from bad_adapters import CONFIG, PREFIX, Q_A, good_pair, lora
from command_line import ADAPTER, BASE, ROOT, environment
from small_pairs import write

DASH = "\N{EN DASH}"
HOSTILE = (
    "</title><script>alert(1)</script>",
    '" onload="alert(1)',
    "'><img src=http://evil.example/x>",
    "a&b<c>d",
    "\x00\x1b[31m\u202e\ud800\ufffe",
    "x" * 5000,
)


def parsed(text: str) -> ET.Element:
    """The page as XML, which is stricter than what a browser takes."""
    head, _, rest = text.partition("\n")
    assert head == "<!DOCTYPE html>"
    return ET.fromstring(rest)  # noqa: S314 - our own text


def texts(text: str) -> str:
    """Everything that a reader could see, tooltips included."""
    root = parsed(text)
    titles = [each.get("title", "") for each in root.iter()]
    return "\n".join([*root.itertext(), *titles])


def row(module: str, norm: float | None = 1.0, ranks: int = 4) -> ModuleRow:
    """A module with a spectrum."""
    energy = (*(1 - 10.0**-rank for rank in range(1, ranks)), 1.0)
    shape = (8, 8)
    return ModuleRow(
        module, "lora", ranks, 2.0, shape, 64, 1.0, norm, 1.5, energy if norm else None, 0, 3.0
    )


def summary(rows: Iterator[ModuleRow] | list[ModuleRow], path: str = "adapter") -> AdapterSummary:
    """An adapter with these modules."""
    modules = tuple(rows)
    return AdapterSummary(
        path=path,
        layout="peft",
        tuners={"lora": len(modules)},
        base="someone/tiny",
        parameters=64,
        bytes=256,
        dtypes={"F32": 2},
        ranks={"min": 4, "max": 4, "histogram": {"4": 1}},
        scaling={"min": 2.0, "max": 2.0},
        targets={},
        modules=modules,
        carried=(),
        provenance={},
        share_of_base=None,
        findings=(),
    )


def one(item: AdapterSummary) -> str:
    """The page of one adapter."""
    return page(Inspected((item,), None))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fixtures' page, over their base."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    api.inspect(ADAPTER, html=out, base=BASE)
    return out.read_text()


def test_page_is_well_formed_and_alone(drawn: str) -> None:
    """No script, no link, nothing that is loaded from anywhere, and a policy that forbids it."""
    root = parsed(drawn)
    tags = {each.tag for each in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "base", "a", "use", "image"}
    assert not re.search(r"https?:|//|url\(|@import|javascript:", drawn)
    for each in root.iter():
        assert not [
            name for name in each.attrib if name.startswith("on") or name in ("src", "href")
        ]
    assert "default-src 'none'" in drawn


def test_every_module_stands_in_the_page(drawn: str) -> None:
    """With its numbers: in the table, and as a cell of the heatmap and a curve of the spectra."""
    found = api.inspect(ADAPTER, values=True, base=BASE)
    assert isinstance(found, AdapterSummary)
    shown = texts(drawn)
    for each in found.modules:
        assert each.module in shown
        assert f"{each.norm:.3g}" in shown
        assert f"{100 * (each.relative_norm or 0):.3g}" in shown
    root = parsed(drawn)
    cells = [each for each in root.iter("rect") if each.find("title") is not None]
    curves = [each for each in root.iter("path") if each.find("title") is not None]
    assert len(cells) == len(curves) == 14


def test_page_is_light_and_dark_and_fits_a_phone(drawn: str) -> None:
    """Both palettes, the viewport, and no width in pixels that would push it wider."""
    assert "prefers-color-scheme:dark" in drawn
    assert 'content="width=device-width, initial-scale=1"' in drawn
    assert 'svg width="' not in drawn


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text(text: str) -> None:
    """Names of modules, of files, of the base, of findings: the markup is that of any other."""
    drawn, plain = _everywhere(text), _everywhere("harmless")
    assert _markup(drawn) == _markup(plain)
    drawn.encode()


def _everywhere(text: str) -> str:
    """A page with `text` wherever foreign text may stand."""
    finding = Finding(Code.USAGE, Severity.NOTE, text, file=text, tensor=text, field=text)
    names = [f"model.layers.{layer}.{text}" for layer in range(2)]
    item = replace(
        summary([row(name) for name in [*names, text]], path=text),
        base=text,
        layout=text,
        tuners={text: 1},
        findings=(finding,),
    )
    return page(Inspected((item, item), ((1.0, None), (None, 1.0))))


def _markup(text: str) -> list[tuple[str, list[str]]]:
    return [(each.tag, sorted(each.attrib)) for each in parsed(text).iter()]


def test_page_is_the_same_every_time(tmp_path: Path) -> None:
    """Its bytes depend on the adapter alone, not on the hash seed or the clock."""
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.html"
        command = [sys.executable, "-m", "adaptool", "inspect", str(ADAPTER), "--html", str(out)]
        env = environment({"PYTHONHASHSEED": seed, "TZ": f"UTC{seed}"})
        subprocess.run(command, check=True, env=env, cwd=ROOT, capture_output=True)
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_page_does_not_tell_where_the_files_lie(tmp_path: Path) -> None:
    """The last part of a path names it; the rest is nobody's business."""
    _, adapter = good_pair().write(tmp_path / "secret-project")
    out = tmp_path / "page.html"
    api.inspect(adapter, html=out)
    assert "secret-project" not in out.read_text()


def test_adapters_of_one_name_are_told_apart() -> None:
    """By their whole paths."""
    items = tuple(summary([row("a")], path=f"run{place}/checkpoint") for place in (1, 2))
    shown = texts(page(Inspected(items, ((1.0, 0.5), (0.5, 1.0)))))
    assert "run1/checkpoint" in shown
    assert "run2/checkpoint" in shown


def test_similarity_is_a_matrix_of_numbers() -> None:
    """One cell for each pair; what is unknown is a dash."""
    items = tuple(summary([row("a")], path=f"{place}") for place in range(3))
    matrix = ((1.0, -0.5, None), (-0.5, 1.0, -1e-9), (None, -1e-9, 1.0))
    (table,) = [
        each
        for each in parsed(page(Inspected(items, matrix))).iter("table")
        if each.get("class") == "matrix"
    ]
    cells = ["".join(each.itertext()) for each in table.iter("td")]
    assert cells == ["", "1.00", "-0.50", DASH, "-0.50", "1.00", "0.00", DASH, "0.00", "1.00"]


def test_adapter_without_numbers_has_a_page_too(tmp_path: Path) -> None:
    """DoRA, NaN, a module pruned to rank 0, zeros, no module at all."""
    pair = write("dora-rows", tmp_path / "dora")
    api.inspect(pair.adapter, html=tmp_path / "dora.html", base=pair.base)
    assert "layers.1.mlp.down_proj" in texts((tmp_path / "dora.html").read_text())
    broken = good_pair()
    broken.tensors[Q_A][0, 0] = np.nan
    _, adapter = broken.write(tmp_path / "nan")
    api.inspect(adapter, html=tmp_path / "nan.html")
    assert "not-finite" in texts((tmp_path / "nan.html").read_text())
    parsed(one(summary([])))
    parsed(one(summary([row("a", None), replace(row("b", 0.0), energy=())])))


def test_large_adapter_stays_readable() -> None:
    """Experts share cells, panels are limited, and every module is in the table."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj"
        for layer in range(6)
        for expert in range(16)
        for name in ("gate", "up", "down")
    ]
    names += [f"lone{place}" for place in range(40)]
    drawn = one(summary([row(name, 1.0 + len(name), 300) for name in names]))
    root = parsed(drawn)
    cells = [each for each in root.iter("rect") if each.find("title") is not None]
    assert len(cells) == 6 * 3
    assert len([each for each in root.iter("div") if each.get("class") == "panel"]) == 24
    shown = set(root.itertext())
    assert set(names) <= shown


def test_checkpoint_has_a_page_too(tmp_path: Path) -> None:
    """Its sizes; no heatmap."""
    api.inspect(BASE, html=tmp_path / "page.html")
    assert "LlamaForCausalLM" in texts((tmp_path / "page.html").read_text())


def test_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file that exists stays unless --overwrite; nothing is drawn where the adapter is bad."""
    _, adapter = good_pair().write(tmp_path / "pair")
    out = tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(OutputError):
        api.inspect(adapter, html=out)
    assert out.read_text() == "mine"
    with pytest.raises(OutputError):
        api.inspect(adapter, html=tmp_path / "pair", overwrite=True)
    with pytest.raises(UsageError):
        api.inspect(adapter, html=adapter / CONFIG, overwrite=True)
    api.inspect(adapter, html=out, overwrite=True)
    assert out.read_text().startswith("<!DOCTYPE html>")
    bad = good_pair()
    bad.tensors |= lora("model.layers.0.x", 8, 8, 3)
    del bad.tensors[f"{PREFIX}model.layers.0.x.lora_B.weight"]
    _, broken = bad.write(tmp_path / "bad")
    with pytest.raises(Exception, match="lora_B"):
        api.inspect(broken, html=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()
