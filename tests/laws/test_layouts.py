"""Laws over the registry of layouts: what goes from one to another and back is what it was."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import plain_adapters as plain
from adaptool import layouts
from adaptool.errors import MismatchError
from adaptool.layouts import Writable, writable
from adaptool.model.adapter import Adapter
from adaptool.model.encoding import Destination
from adaptool.model.reading import AS_IT_STANDS, BaseNames, Reading
from adaptool.store.adapter_files import open_adapter
from pipeline_adapters import effect_of, random_file, write_plainly

PAIRS = list(itertools.permutations(sorted(writable()), 2))
# A factor that took a scale in is rounded to float32.
ROUNDED = 1e-6
DECODER = Reading(base=BaseNames({}, plain.CONFIG))
Write = Callable[[Path], Path]
UNEVEN = {"use_rslora": True, "rank_pattern": {"up_proj": 6}, "alpha_pattern": {"v_proj": 3}}
# Layers of which the first two stand for all.
_FAR = re.compile(r"blocks[._]([2-9]|[1-3]\d)[._]")
_DENSE = plain.layered({**plain.ATTENTION, **plain.MLP})


def _plain(modules: Mapping[str, tuple[int, int]], **options: object) -> Write:
    return lambda folder: plain.write(folder, modules, **options)  # type: ignore[arg-type]


def _random(header: str) -> Write:
    """A few layers of a real file's names, in random numbers."""
    return lambda folder: _fewer(random_file(folder.with_suffix(".all"), header), folder)


def _fewer(path: Path, folder: Path) -> Path:
    kept = folder.with_suffix(".safetensors")
    tensors = load_file(path)
    save_file({key: each for key, each in tensors.items() if not _FAR.search(key)}, kept)
    return kept


ADAPTERS: Mapping[str, tuple[Write, Reading]] = {
    "decoder": (_plain(_DENSE), DECODER),
    "decoder uneven": (_plain(_DENSE, config=UNEVEN), DECODER),
    "decoder 16 bit": (_plain(_DENSE, dtype="float16"), DECODER),
    "decoder DoRA": (_plain(_DENSE, magnitudes=True), DECODER),
    "flux of diffusers": (_random("flux_diffusers"), AS_IT_STANDS),
    "flux of kohya": (_random("flux_kohya"), AS_IT_STANDS),
}


def _read(path: Path, reading: Reading) -> Adapter:
    return layouts.decode(open_adapter(path), reading)


def _written(adapter: Adapter, layout: str, folder: Path, reading: Reading) -> Path | None:
    """The adapter in `layout`; None where that says that it cannot hold it."""
    target: Writable = writable()[layout]
    if target.losses(adapter):
        return None
    try:
        encoded = target.encode(adapter, Destination(base=reading.base))
    except MismatchError:
        return None
    folder.mkdir()
    write_plainly(encoded, folder)
    return folder


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
def test_there_and_back_every_delta_is_the_same(
    name: str, one: str, other: str, tmp_path: Path
) -> None:
    """Delta for delta in float64; bit for bit where one scale and one rank serve all."""
    write, reading = ADAPTERS[name]
    start = _read(write(tmp_path / "start"), reading)
    first = _written(start, one, tmp_path / "first", reading)
    second = first and _written(_read(first, reading), other, tmp_path / "second", reading)
    if first is None or second is None:
        assert (
            not {one, other} <= {"peft", "mlx", "gguf"} or "decoder" not in name or "DoRA" in name
        )
        return
    back = _written(_read(second, reading), one, tmp_path / "back", reading)
    if back is None:  # names alone do not tell some pipelines apart, and that is said
        assert "flux" in name
        return
    before, after = _read(first, reading), _read(back, reading)
    tolerance = ROUNDED if "uneven" in name else 0.0
    effect_of(before).assert_same(effect_of(after), tolerance)
    if "decoder" in name and not tolerance:
        weights = [
            next(path for path in folder.iterdir() if path.suffix != ".json")
            for folder in (first, back)
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("layout", sorted(writable()))
def test_every_writable_layout_holds_some_adapter(layout: str, tmp_path: Path) -> None:
    """The law above would otherwise be empty for it."""
    for place, (write, reading) in enumerate(ADAPTERS.values()):
        adapter = _read(write(tmp_path / f"{place}"), reading)
        if _written(adapter, layout, tmp_path / f"out{place}", reading) is not None:
            return
    pytest.fail(f"no adapter here can be written as {layout}")


@pytest.mark.parametrize("name", sorted(layouts.layouts()))
def test_every_layout_says_what_it_is(name: str) -> None:
    """A title, how it is detected, and what is lost in it: the README's table."""
    layout = layouts.layouts()[name]
    assert layout.TITLE
    if name != "peft":
        assert getattr(layout, "DETECT", "")
        assert isinstance(getattr(layout, "LOSSY", None), str)
