"""Validate collects what would stop a merge, and goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import plain_adapters
import small_pairs
from adaptool import api
from adaptool.errors import Interrupted, UsageError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.results import ValidateResult
from bad_adapters import (
    CONFIG,
    HIDDEN,
    Q_A,
    Q_PROJ,
    RANK,
    VOCAB,
    WEIGHTS,
    Raw,
    good_pair,
    lora,
    with_tensors,
)
from bad_builders import BadFile
from bad_checkpoints import CHECKPOINTS
from bad_files import CONTAINER, KINDS
from small_pairs import LLAMA, llama_base, save_base

MODEL_FILES = [bad for bad in (*CONTAINER, *KINDS) if bad.exit == 3 and not bad.unprivileged]


def codes(result: ValidateResult) -> list[tuple[Severity, Code]]:
    """Severity and code of each finding, in order."""
    return [(finding.severity, finding.code) for finding in result.findings]


def test_every_misfit_is_reported(tmp_path: Path) -> None:
    """Two wrong shapes and an absent module give three errors, not one."""
    pair = good_pair()
    pair.tensors |= lora("model.layers.9.self_attn.q_proj", HIDDEN, HIDDEN)
    pair.tensors |= lora(Q_PROJ, HIDDEN, HIDDEN + 1)
    pair.tensors |= lora("model.layers.1.self_attn.q_proj", HIDDEN + 1, HIDDEN)
    base, adapter = pair.write(tmp_path)
    found = [code for _, code in codes(api.validate(adapter, base=base))]
    assert sorted(found) == [Code.MODULE_NOT_IN_BASE, Code.SHAPE_MISMATCH, Code.SHAPE_MISMATCH]
    assert api.validate(adapter).ok


def test_every_wrong_field_is_reported(tmp_path: Path) -> None:
    """All of a config's faults at once, each with its field."""
    pair = good_pair()
    pair.config |= {"r": "4", "lora_alpha": None, "use_dora": "false", "bias": 1}
    _, adapter = pair.write(tmp_path)
    fields = [finding.field for finding in api.validate(adapter).findings]
    assert fields == ["r", "lora_alpha", "use_dora", "bias"]


def test_bad_adapter_does_not_hide_bad_base(tmp_path: Path) -> None:
    """Both sides are looked at before the verdict."""
    pair = good_pair()
    pair.config["r"] = 0
    base, adapter = pair.write(tmp_path)
    (base / "model.safetensors").write_bytes(b"short")
    assert [code for _, code in codes(api.validate(adapter, base=base))] == [
        Code.FIELD_VALUE,
        Code.HEADER_TOO_SHORT,
    ]


def test_errors_come_before_warnings_and_notes(tmp_path: Path) -> None:
    """A reader sees first what stops a merge."""
    pair = good_pair()
    pair.config |= {"base_model_name_or_path": "/home/me", "lora_alpha": -8}
    pair.tensors[Q_A][0, 0] = np.inf
    base, adapter = pair.write(tmp_path)
    assert codes(api.validate(adapter, base=base, values=True)) == [
        (Severity.ERROR, Code.NOT_FINITE),
        (Severity.WARNING, Code.ALPHA_NEGATIVE),
        (Severity.NOTE, Code.BASE_REFERENCE_UNSAFE),
    ]


def test_strict_fails_on_a_warning(tmp_path: Path) -> None:
    """A warning is ok without `strict`, and not with it."""
    pair = good_pair()
    pair.config["lora_alpha"] = -8
    _, adapter = pair.write(tmp_path)
    assert api.validate(adapter).ok
    assert not api.validate(adapter, strict=True).ok


def test_values_are_scanned_even_where_the_config_is_broken(tmp_path: Path) -> None:
    """What can be looked at is looked at."""
    pair = good_pair()
    pair.config["r"] = 0
    pair.tensors[Q_A][0, 0] = np.nan
    _, adapter = pair.write(tmp_path)
    found = {code for _, code in codes(api.validate(adapter, values=True))}
    assert found == {Code.FIELD_VALUE, Code.NOT_FINITE}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_first_nonfinite_value_is_located(dtype: str, tmp_path: Path) -> None:
    """Count and flat index, in every dtype."""
    pair = good_pair()
    factor = np.ones((RANK, HIDDEN), dtype)
    factor[2, 3] = np.nan
    factor[3, 0] = -np.inf
    pair.tensors[Q_A] = factor
    _, adapter = pair.write(tmp_path)
    (finding,) = api.validate(adapter, values=True).findings
    assert (finding.code, finding.tensor) == (Code.NOT_FINITE, Q_A)
    assert f"2 of 64 values are NaN or infinite, the first at {2 * HIDDEN + 3}" in finding.message


def test_nan_of_float8_is_seen(tmp_path: Path) -> None:
    """0x7f is E4M3's NaN."""
    pair = good_pair()
    content = bytes([56] * 63 + [0x7F])
    with_tensors(lora_A=Raw("F8_E4M3", (RANK, HIDDEN), content))(pair)
    _, adapter = pair.write(tmp_path)
    (finding,) = api.validate(adapter, values=True).findings
    assert finding.code is Code.NOT_FINITE
    assert "the first at 63" in finding.message


def test_nan_beyond_the_first_block_is_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor is read in blocks; the index counts from its start."""
    monkeypatch.setattr("adaptool.engine.values.BLOCK_BYTES", 32)
    pair = good_pair()
    pair.tensors[Q_A].flat[[50, 60]] = np.nan
    _, adapter = pair.write(tmp_path)
    (finding,) = api.validate(adapter, values=True).findings
    assert "2 of 64 values are NaN or infinite, the first at 50" in finding.message


def test_nan_in_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    """Checkpoints are scanned like adapters."""
    pair = good_pair()
    pair.base["lm_head.weight"][1, 1] = np.nan
    base, _ = pair.write(tmp_path)
    assert api.validate(base).ok
    result = api.validate(base, values=True)
    assert not result.ok
    assert [(each.code, each.tensor) for each in result.findings] == [
        (Code.NOT_FINITE, "lm_head.weight")
    ]


def untrained(tmp_path: Path, count: int) -> tuple[Finding, ...]:
    """Findings of an adapter in which the first `count` modules have a lora_B of zeros."""
    pair = good_pair()
    for name in [name for name in pair.tensors if "lora_B" in name][:count]:
        pair.tensors[name][:] = -0.0
    _, adapter = pair.write(tmp_path)
    return api.validate(adapter, values=True).findings


def test_untrained_adapter_is_a_warning(tmp_path: Path) -> None:
    """PEFT starts lora_B at zero: all zero means never trained. Minus zero is zero."""
    (finding,) = untrained(tmp_path, 4)
    assert (finding.code, finding.severity) == (Code.ALL_ZERO, Severity.WARNING)
    assert "4 of 4" in finding.message
    assert "untrained" in finding.message


def test_some_untrained_modules_are_a_note(tmp_path: Path) -> None:
    """Frozen layers are a choice."""
    (finding,) = untrained(tmp_path, 1)
    assert (finding.code, finding.severity) == (Code.ALL_ZERO, Severity.NOTE)
    assert "1 of 4" in finding.message


def test_matrices_of_zeros_in_a_checkpoint_are_a_warning(tmp_path: Path) -> None:
    """As after a power cut; vectors of zeros are common and say nothing."""
    pair = good_pair()
    pair.base["lm_head.weight"] = np.zeros((VOCAB, HIDDEN), "float32")
    pair.base["model.norm.bias"] = np.zeros(HIDDEN, "float32")
    base, _ = pair.write(tmp_path)
    (finding,) = api.validate(base, values=True).findings
    assert (finding.code, finding.severity) == (Code.ALL_ZERO, Severity.WARNING)
    assert finding.tensor == "lm_head.weight"
    assert finding.message.startswith("1 of ")


@pytest.mark.parametrize("missing", ["path", "base"])
def test_path_that_does_not_exist_is_a_usage_error(missing: str, tmp_path: Path) -> None:
    """Nothing to have findings about: exit 2."""
    base, adapter = good_pair().write(tmp_path)
    shutil.rmtree(base if missing == "base" else adapter)
    with pytest.raises(UsageError) as caught:
        api.validate(adapter, base=base)
    assert caught.value.code is Code.NOT_FOUND


def test_folder_of_neither_kind_is_a_usage_error(tmp_path: Path) -> None:
    """B2: nothing to validate here."""
    with pytest.raises(UsageError) as caught:
        api.validate(tmp_path)
    assert caught.value.code is Code.CHECKPOINT_MISSING


def test_base_for_a_checkpoint_is_a_usage_error(tmp_path: Path) -> None:
    """A base is what adapters are checked against."""
    base, _ = good_pair().write(tmp_path)
    with pytest.raises(UsageError) as caught:
        api.validate(base, base=base)
    assert (caught.value.code, caught.value.field) == (Code.USAGE, "--base")


def test_adapter_without_weights_is_a_finding(tmp_path: Path) -> None:
    """A half-finished download is an artifact that is not ok."""
    _, adapter = good_pair().write(tmp_path)
    (adapter / WEIGHTS).unlink()
    assert codes(api.validate(adapter)) == [(Severity.ERROR, Code.NOT_FOUND)]


def test_config_beside_a_single_file_is_found(tmp_path: Path) -> None:
    """The file alone, with adapter_config.json beside it and without."""
    _, adapter = good_pair().write(tmp_path)
    assert api.validate(adapter / WEIGHTS).findings == ()
    (adapter / CONFIG).unlink()
    assert codes(api.validate(adapter / WEIGHTS)) == [(Severity.ERROR, Code.CONFIG_MISSING)]


def test_signal_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being told to stop is not a verdict on the artifact."""
    _, adapter = good_pair().write(tmp_path)

    def interrupted(*_: object) -> None:
        raise Interrupted(2, "stopped")

    monkeypatch.setattr("adaptool.ops.validate.decode", interrupted)
    with pytest.raises(Interrupted):
        api.validate(adapter)


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.row) for bad in CHECKPOINTS])
def test_checkpoint_rows_become_findings(bad: BadFile, tmp_path: Path) -> None:
    """Rows E: the code that opening raises or notes is among the findings."""
    path = bad.build(tmp_path)
    result = api.validate(path)
    assert result.ok is (bad.exit == 0)
    if bad.code is not None:
        assert bad.code in [finding.code for finding in result.findings]


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.row) for bad in MODEL_FILES])
def test_container_rows_become_findings(bad: BadFile, tmp_path: Path) -> None:
    """Rows A and B: a malformed file is not ok, with the code that opening raises."""
    result = api.validate(bad.build(tmp_path))
    assert not result.ok
    assert bad.code in [finding.code for finding in result.findings]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("language_model.model.layers.0.self_attn.q_proj", [Code.PEFT_QUIRK]),
        ("model.language_model.layers.0.self_attn.q_proj", []),
    ],
)
def test_names_of_the_checkpoint_are_not_those_that_peft_looks_for(
    module: str, expected: list[Code], tmp_path: Path
) -> None:
    """A merge takes both; PEFT, under transformers 5, selects nothing of the first."""
    tensors = {f"language_model.{name}": value for name, value in llama_base().items()}
    config = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": LLAMA,
        "vision_config": {"model_type": "clip_vision_model"},
    }
    save_base(tmp_path / "base", tensors, config, "bfloat16")
    adapter = plain_adapters.write(tmp_path / "a", {module: (small_pairs.HIDDEN,) * 2})
    found = api.validate(adapter, base=tmp_path / "base")
    assert [finding.code for finding in found.findings] == expected
    assert found.ok
