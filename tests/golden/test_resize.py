"""resize against torch's full SVD in float64 and PEFT's own loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

import adaptool
import golden_cases
from adaptool.engine.algebra import FactorAlgebra
from adaptool.layouts import decode
from adaptool.model.adapter import Delta
from adaptool.model.options import Machine
from adaptool.store.adapter_files import open_adapter
from golden_cases import BY_NAME, quietly
from tiny_models import build

NAMES = (
    "plain",
    "every_linear",
    "alpha_negative",
    "rslora",
    "patterns",
    "patterns_rslora",
    "embedding",
    "both_ends",
    "convolutions_rslora",
    "mixtral_experts_and_attention",
    "gpt_oss_experts",
    "parameter_2d",
    "gpt2",
    "lora_bias",
    "bias_all",
    "saved_head",
    "token_rows",
    "blocks",
    "attention",
    "linear_bfloat16",
    "stacked_bfloat16",
)


def _deltas(path: Path) -> dict[str, list[torch.Tensor]]:
    """Parameter -> scaled delta as float64 matrices, one for each expert."""
    algebra = FactorAlgebra(Machine(device="cpu"))
    with open_adapter(path) as files:
        return {
            delta.parameter: [
                delta.terms.scaling * (left @ right) for left, right in algebra.products(delta)
            ]
            for delta in decode(files).deltas
            if _has_rank(delta)
        }


def _has_rank(delta: Delta) -> bool:
    return delta.terms.rank is not None


def _best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_at_the_optimum(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """float32 output: the error exceeds the Eckart-Young optimum by at most 1e-6 |delta|."""
    made = golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp())
    result = adaptool.resize(made.adapter, tmp_path / "out", rank=2, dtype="float32")
    before, after = _deltas(made.adapter), _deltas(tmp_path / "out")
    assert set(before) == set(after)
    reported = {module.module: module for module in result.modules}
    for parameter, matrices in before.items():
        norm = torch.stack(matrices).norm()
        error = (torch.stack(matrices) - torch.stack(after[parameter])).norm()
        optimum = torch.stack([matrix - _best(matrix, 2) for matrix in matrices]).norm()
        assert error - optimum <= 1e-6 * norm, parameter
        row = reported[parameter.removesuffix(".weight")]
        assert row.relative_error * norm == pytest.approx(float(optimum), abs=1e-6 * float(norm))
        assert row.energy == pytest.approx(1 - row.relative_error**2)


@pytest.mark.parametrize("rule", [{"rank": 2}, {"energy": 0.8}, {"keep": 0.4}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_peft_loads_every_result_with_the_same_weights(
    name: str, rule: dict[str, float], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT's loader takes config and tensors: what its model then holds is what was written."""
    case = BY_NAME[name]
    made = golden_cases.make(case, tmp_path_factory.getbasetemp())
    adaptool.resize(made.adapter, tmp_path / "out", **rule)
    with quietly():
        model = PeftModel.from_pretrained(build(case.model), tmp_path / "out")
    held = {key.replace(".default", ""): value for key, value in model.state_dict().items()}
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for key, value in written.items():
        assert torch.equal(held[_in_model(key, held)].float(), value.float()), key
    scaling = {
        module: layer.scaling["default"]
        for module, layer in model.base_model.model.named_modules()
        if isinstance(getattr(layer, "scaling", None), dict) and "default" in layer.scaling
    }
    with open_adapter(tmp_path / "out") as files:
        for delta in decode(files).deltas:
            if _has_rank(delta) and "base_layer" not in delta.module:
                assert scaling[delta.module] == pytest.approx(delta.terms.scaling), delta.module


def _in_model(key: str, held: dict[str, torch.Tensor]) -> str:
    """Where PEFT keeps what a file calls `key`: saved modules stand one level deeper."""
    if key in held:
        return key
    head, _, tail = key.rpartition(".")
    for candidate in (
        f"{head}.modules_to_save.{tail}",
        f"{key}.weight",
        key.replace("token_adapter.trainable_tokens_delta", "token_adapter.trainable_tokens_delta"),
    ):
        if candidate in held:
            return candidate
    raise KeyError(key)


def test_rank_it_has_already_changes_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes of every tensor as they were, and a note."""
    made = golden_cases.make(BY_NAME["plain"], tmp_path_factory.getbasetemp())
    result = adaptool.resize(made.adapter, tmp_path / "out", rank=64)
    assert "nothing-to-do" in [str(finding.code) for finding in result.findings]
    old = load_file(made.adapter / "adapter_model.safetensors")
    new = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(old) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_dora_keeps_its_magnitudes_and_its_kind(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """B A is truncated, m stays bit for bit, the config still says DoRA."""
    made = golden_cases.make(BY_NAME["dora"], tmp_path_factory.getbasetemp())
    adaptool.resize(made.adapter, tmp_path / "out", rank=2)
    old = load_file(made.adapter / "adapter_model.safetensors")
    new = load_file(tmp_path / "out" / "adapter_model.safetensors")
    magnitudes = [name for name in old if "magnitude" in name]
    assert magnitudes
    assert all(torch.equal(old[name], new[name]) for name in magnitudes)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["use_dora"] is True
    assert config["r"] == 2


def test_budget_beats_a_uniform_rank_of_the_same_size(tmp_path: Path) -> None:
    """Uneven spectra: less total error than rank 4 everywhere, in no more bytes."""
    _uneven(tmp_path / "adapter")
    uniform = adaptool.resize(tmp_path / "adapter", tmp_path / "uniform", rank=4)
    size = (tmp_path / "uniform" / "adapter_model.safetensors").stat().st_size
    result = adaptool.resize(tmp_path / "adapter", tmp_path / "out", budget=size)
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size <= size
    assert result.relative_error < 0.8 * uniform.relative_error
    share = uniform.parameters_after / uniform.parameters_before
    kept = adaptool.resize(tmp_path / "adapter", tmp_path / "kept", keep=share)
    assert kept.parameters_after <= uniform.parameters_after
    assert kept.relative_error < 0.8 * uniform.relative_error


def _uneven(folder: Path) -> None:
    """Eight modules of rank 16 whose singular values fall at different rates."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for place in range(8):
        falls = torch.arange(16) * (0.05 + 0.4 * (place % 4))
        b = torch.linalg.qr(torch.randn(96, 16, generator=generator))[0]
        a = torch.linalg.qr(torch.randn(64, 16, generator=generator))[0].T
        prefix = f"base_model.model.model.layers.{place}.mlp.up_proj.lora_"
        tensors[f"{prefix}B.weight"] = (b * torch.exp(-falls)).contiguous()
        tensors[f"{prefix}A.weight"] = a.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_single_file_carries_its_config(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """OUT with a suffix is one file; its metadata hold what adapter_config.json would."""
    made = golden_cases.make(BY_NAME["patterns"], tmp_path_factory.getbasetemp())
    adaptool.resize(made.adapter, tmp_path / "small.safetensors", rank=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.safetensors"]
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        config = json.loads(file.metadata()["adapter_config"])
    assert config["r"] == 2
    again = adaptool.resize(tmp_path / "small.safetensors", tmp_path / "again", rank=1)
    assert {module.rank_before for module in again.modules} == {2}
