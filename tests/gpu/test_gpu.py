"""A CUDA device writes the same bytes as the CPU, and its failures are one line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptool import api
from adaptool.engine.arithmetic import CUDA_TILE_ELEMENTS
from adaptool.engine.rounding import round_into
from adaptool.engine.write import write_model
from adaptool.errors import ResourceError
from adaptool.findings import Code
from faulty_disk import Fault, FaultPlan, FaultyDisk
from in_process import ask
from small_pairs import (
    LLAMA,
    PAIRS,
    Pair,
    config_of,
    drawn,
    lora,
    save_adapter,
    save_base,
    write,
)
from unmerging import lost

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def differing(left: Path, right: Path) -> list[str]:
    """Names of files that differ."""
    ours, theirs = files(left), files(right)
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


def both(pair: Pair, folder: Path, **options: Any) -> list[str]:
    """Merge on the CPU and on the device; the files that differ."""
    api.merge(pair.base, pair.adapter, folder / "cpu", device="cpu", **options)
    on_device = api.merge(pair.base, pair.adapter, folder / "cuda", device="cuda", **options)
    assert on_device.device.startswith("cuda")
    return differing(folder / "cpu", folder / "cuda")


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float64_gives_the_cpus_bytes(name: str, dtype: str, tmp_path: Path) -> None:
    """Every kind of row, the receipt and the checksums too."""
    assert both(write(name, tmp_path, dtype=dtype), tmp_path, checksum=True) == []


@pytest.mark.parametrize("name", ["lora", "dora-columns", "experts"])
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.usefixtures("small_tiles")
def test_bytes_do_not_depend_on_lanes_or_tiles(name: str, threads: int, tmp_path: Path) -> None:
    """Many small tiles on several streams: a buffer used again too early would show."""
    assert both(write(name, tmp_path), tmp_path, threads=threads) == []


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few rows, jobs of a few tiles, norms over a few rows at a time."""
    monkeypatch.setattr("adaptool.engine.arithmetic.CUDA_TILE_ELEMENTS", 1)
    monkeypatch.setattr("adaptool.api.merging.write_model", partial(write_model, tile_elements=400))
    monkeypatch.setattr("adaptool.engine.tiles.JOB_ELEMENTS", 1000)
    monkeypatch.setattr("adaptool.engine.run.OBSERVED_ELEMENTS", 400)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tensor of more than one tile of the device's own size, and several of them."""
    folder = tmp_path_factory.mktemp("large")
    columns = 4000
    rows = CUDA_TILE_ELEMENTS // columns + 37
    modules = [f"model.layers.{layer}.mlp.up_proj" for layer in range(3)]
    tensors = {f"{module}.weight": drawn(7, rows, columns) for module in modules}
    tensors["model.embed_tokens.weight"] = drawn(1, 8, 8)
    tensors["model.norm.weight"] = drawn(2, 8)
    save_base(folder / "base", tensors, LLAMA, "bfloat16")
    factors = {}
    for place, module in enumerate(modules):
        factors |= lora(module, rows, columns, seed=10 * place)
    save_adapter(folder / "adapter", factors, config_of(target_modules=["up_proj"]))
    return Pair(folder / "base", folder / "adapter")


def test_pinned_buffers_carry_large_tiles(
    large: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read and written passes through pinned memory, tile after tile, unchanged."""
    pinned: list[bool] = []
    empty = torch.empty

    def noted(*shape: Any, **options: Any) -> torch.Tensor:
        pinned.append(bool(options.get("pin_memory")))
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", noted)
    assert both(large, tmp_path) == []
    assert any(pinned)


def test_float32_is_within_one_step_of_the_cpu(large: Pair, tmp_path: Path) -> None:
    """The fast arithmetic may differ, never by TF32's ten bits."""
    api.merge(large.base, large.adapter, tmp_path / "out", device="cuda", precision="float32")
    assert api.verify(large.base, large.adapter, tmp_path / "out", device="cpu").ok


@pytest.mark.parametrize("name", ["lora", "dora-rows", "dora-columns"])
def test_verify_on_the_device_agrees_to_the_byte(name: str, tmp_path: Path) -> None:
    """Made here, checked there."""
    pair = write(name, tmp_path)
    api.merge(pair.base, pair.adapter, tmp_path / "out", device="cpu")
    assert api.verify(pair.base, pair.adapter, tmp_path / "out", exact=True, device="cuda").ok


def test_run_begun_on_the_cpu_ends_on_the_device(tmp_path: Path) -> None:
    """The device is no part of the plan, so what is staged is taken up."""
    pair = write("lora", tmp_path)
    api.merge(pair.base, pair.adapter, tmp_path / "expected", device="cpu")
    disk = FaultyDisk(FaultPlan(60, Fault.CTRL_C))
    with pytest.raises(KeyboardInterrupt):
        api.merge(pair.base, pair.adapter, tmp_path / "out", device="cpu", disk=disk)
    disk.bury()
    api.merge(pair.base, pair.adapter, tmp_path / "out", device="cuda")
    assert differing(tmp_path / "out", tmp_path / "expected") == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_on_the_device_is_the_cpus(dtype: torch.dtype) -> None:
    """Around the middle between any two neighbours of the format, and at random."""
    patterns = torch.arange(0x7F80 if dtype is torch.bfloat16 else 0x7C00, dtype=torch.int16)
    low, high = patterns.view(dtype).double(), (patterns + 1).view(dtype).double()
    middle = ((low + high) / 2)[:-1]
    beyond = torch.full_like(middle, torch.inf)
    draw = torch.Generator().manual_seed(0)
    values = torch.cat(
        [
            middle,
            -middle,
            torch.nextafter(middle, beyond),
            torch.nextafter(middle, -beyond),
            torch.randn(100_000, dtype=torch.float64, generator=draw),
            torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1e300, 1e-300], dtype=torch.float64),
        ]
    )
    found = {}
    for device in ("cpu", "cuda"):
        value = values.to(device)
        target = torch.empty(value.shape, dtype=dtype, device=device)
        round_into(target, value, torch.empty(value.shape, device=device))
        found[device] = target.cpu().view(torch.int16)
    assert torch.equal(found["cpu"], found["cuda"])


@pytest.fixture
def no_memory() -> Iterator[None]:
    """The device gives this process next to nothing."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("no_memory")
def test_device_without_memory_is_exit_7(large: Pair, tmp_path: Path) -> None:
    """F20: one line with what to do, OUT absent, what is staged stays for another device."""
    with pytest.raises(ResourceError) as caught:
        api.merge(large.base, large.adapter, tmp_path / "out", device="cuda")
    assert caught.value.code is Code.OUT_OF_MEMORY
    assert "--device cpu" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()
    api.merge(large.base, large.adapter, tmp_path / "out", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_device_that_is_not_there_is_exit_7(tmp_path: Path) -> None:
    """--device cuda:99 on a machine that has fewer."""
    pair = write("lora", tmp_path)
    out = tmp_path / "out"
    answer = ask("merge", pair.base, pair.adapter, out, "--device", "cuda:99", "--json")
    assert answer.code == 7
    assert answer.json["error"]["code"] == "device-missing"
    assert not out.exists()


def test_auto_takes_the_device(tmp_path: Path) -> None:
    """--device auto, the default."""
    pair = write("lora", tmp_path)
    answer = ask("merge", pair.base, pair.adapter, tmp_path / "out", "--json")
    assert answer.json["device"].startswith("cuda")


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_one_device_merged_another_takes_apart(
    dtype: str, precision: str, there: str, here: str, tmp_path: Path
) -> None:
    """Sums end otherwise on a GPU: the base comes back byte for byte all the same."""
    pair = write("lora", tmp_path, dtype=dtype)
    merged, out = tmp_path / "merged", tmp_path / "out"
    options: dict[str, Any] = {"reversible": True, "precision": precision}
    api.merge(pair.base, pair.adapter, merged, device=there, **options)
    api.unmerge(merged, pair.adapter, out, exact=True, device=here)
    assert lost(pair.base, out) == []
