"""Adapters of denoisers as PEFT loads them into diffusers' models: every delta, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import adaptool
from campaign.denoisers import DENOISERS, loaded_by_peft
from golden_cases import quietly

# A part of each model's modules whose endings others of it share: layers of another kind, lists of
# modules, activations.
PARTS = {
    "flux2": "transformer_blocks.1.attn.",
    "z_image": "context_refiner.0.",
    "hunyuan_video": "context_embedder.token_refiner.refiner_blocks.0.attn.",
    "sd3": "transformer_blocks.0.ff_context.",
    "lumina2": "layers.0.attn.",
}


@pytest.mark.parametrize("based", [False, True], ids=["alone", "base"])
@pytest.mark.parametrize(("name", "part"), PARTS.items(), ids=PARTS)
def test_peft_finds_every_delta_of_a_part_of_a_denoiser_and_no_other(
    name: str, part: str, based: bool, tmp_path: Path
) -> None:
    """diffusers' file, written for PEFT, with the base's modules known and without."""
    denoiser = DENOISERS[name]
    tensors, wanted = {}, {}
    for module, (out, inner, *_) in denoiser.modules().items():
        if module.startswith(part):
            a, b = torch.randn(2, inner), torch.randn(out, 2)
            tensors[f"{denoiser.component}.{module}.lora_A.weight"] = a
            tensors[f"{denoiser.component}.{module}.lora_B.weight"] = b
            wanted[module] = b.double() @ a.double()
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", {"format": "pt"})
    base = {}
    if based:
        denoiser.build().save_pretrained(tmp_path / "base")
        base = {"base": tmp_path / "base"}
    adaptool.convert(
        tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "out", to="peft", **base
    )
    with quietly():
        found = loaded_by_peft(denoiser, tmp_path / "out")
    assert wanted
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[module], wanted[module], rtol=1e-4) for module in wanted)
    assert '"family"' not in (tmp_path / "out" / "adapter_config.json").read_text()
