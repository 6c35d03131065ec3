"""What diff says of two adapters or two checkpoints, against full matrices in float64."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptool import api
from adaptool.errors import MismatchError, UsageError
from adaptool.findings import Code
from adaptool.model.comparisons import DiffResult
from bad_adapters import (
    ALPHA,
    DOWN_PROJ,
    EMBEDDING,
    HIDDEN,
    INNER,
    K_PROJ,
    PREFIX,
    Q_A,
    Q_B,
    Q_PROJ,
    RANK,
    VOCAB,
    Pair,
    Raw,
    good_pair,
    lora,
)

SCALING = ALPHA / RANK


def diff_of(one: Pair, other: Pair, folder: Path, *, base: bool = False) -> DiffResult:
    """Write both pairs and compare their adapters, or their bases."""
    place = 0 if base else 1
    return api.diff(one.write(folder / "a")[place], other.write(folder / "b")[place])


def changed(change: Callable[[Pair], None]) -> tuple[Pair, Pair]:
    """The good pair, and the good pair with something else."""
    other = good_pair()
    change(other)
    return good_pair(), other


def delta(pair: Pair, module: str, scaling: float = SCALING) -> Any:
    """One module's full delta."""
    a, b = (pair.tensors[f"{PREFIX}{module}.lora_{side}.weight"].astype(float) for side in "AB")
    return scaling * b @ a


def test_cosine_and_error_are_those_of_the_full_deltas(tmp_path: Path) -> None:
    """Another rank and another scale of one module; the rest is equal."""

    def change(pair: Pair) -> None:
        pair.tensors |= lora(Q_PROJ, HIDDEN, HIDDEN, 2)
        pair.config |= {"rank_pattern": {"layers.0.self_attn.q_proj": 2}}

    one, other = changed(change)
    found = diff_of(one, other, tmp_path)
    rows = {row.module: row for row in found.modules}
    mine, theirs = delta(one, Q_PROJ), delta(other, Q_PROJ, ALPHA / 2)
    norm = np.linalg.norm
    cosine = (mine * theirs).sum() / norm(mine) / norm(theirs)
    assert rows[Q_PROJ].cosine == pytest.approx(cosine, abs=1e-13)
    assert rows[Q_PROJ].relative_error == pytest.approx(norm(mine - theirs) / norm(mine), rel=1e-12)
    assert {row.relative_error for name, row in rows.items() if name != Q_PROJ} == {0.0}
    assert {row.cosine for name, row in rows.items() if name != Q_PROJ} == {1.0}
    whole = np.sqrt(sum(norm(delta(one, name)) ** 2 for name in rows))
    assert found.relative_error == pytest.approx(norm(mine - theirs) / whole, rel=1e-12)
    assert not found.equal
    assert [(row.field, row.a, row.b) for row in found.structure] == [
        ("rank_pattern", {}, {"layers.0.self_attn.q_proj": 2})
    ]


def test_equal_adapters_differ_in_nothing(tmp_path: Path) -> None:
    """Exactly 0 and exactly 1, whatever the numbers are."""
    found = diff_of(good_pair(), good_pair(), tmp_path)
    assert found.equal
    assert (found.cosine, found.relative_error) == (1.0, 0.0)
    assert {(row.cosine, row.relative_error, row.kind) for row in found.modules} == {
        (1.0, 0.0, "delta")
    }
    assert found.structure == ()
    assert found.findings == ()


def test_other_factors_of_the_same_delta_are_equal_to_rounding(tmp_path: Path) -> None:
    """A turned basis: B Q and Q^T A make what B and A make."""

    def turn(pair: Pair) -> None:
        turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((RANK, RANK)))
        pair.tensors[Q_A] = turned.T @ pair.tensors[Q_A].astype(float)
        pair.tensors[Q_B] = pair.tensors[Q_B].astype(float) @ turned

    found = diff_of(*changed(turn), tmp_path)
    row = next(row for row in found.modules if row.module == Q_PROJ)
    assert row.cosine == pytest.approx(1.0, abs=1e-14)
    assert 0 < (row.relative_error or 0) < 1e-14


def test_small_difference_is_not_lost_in_rounding(tmp_path: Path) -> None:
    """One element moved by a step of float32: the error is right to many digits."""

    def nudge(pair: Pair) -> None:
        pair.tensors[Q_B] = pair.tensors[Q_B].copy()
        pair.tensors[Q_B][3, 1] = np.nextafter(pair.tensors[Q_B][3, 1], np.float32(1))

    one, other = changed(nudge)
    row = next(row for row in diff_of(one, other, tmp_path).modules if row.module == Q_PROJ)
    step = other.tensors[Q_B].astype(float) - one.tensors[Q_B].astype(float)
    a = one.tensors[Q_A].astype(float)
    expected = np.linalg.norm(SCALING * step @ a) / np.linalg.norm(delta(one, Q_PROJ))
    assert row.relative_error == pytest.approx(expected, rel=1e-9)


def test_scale_in_the_config_or_in_the_factor_is_the_same(tmp_path: Path) -> None:
    """alpha halved and B doubled: the deltas are equal, only the config is not."""

    def bake(pair: Pair) -> None:
        pair.config["lora_alpha"] = ALPHA // 2
        for name in list(pair.tensors):
            if "lora_B" in name:
                pair.tensors[name] = 2 * pair.tensors[name]

    found = diff_of(*changed(bake), tmp_path)
    assert found.equal
    assert [row.field for row in found.structure] == ["lora_alpha"]


def test_modules_of_one_side_are_listed_and_count_in_the_whole(tmp_path: Path) -> None:
    """Zero on the other side."""

    def swap(pair: Pair) -> None:
        for side in "AB":
            del pair.tensors[f"{PREFIX}{DOWN_PROJ}.lora_{side}.weight"]
        pair.tensors |= lora(K_PROJ, 8, HIDDEN)
        pair.config["target_modules"] = ["down_proj", "q_proj", "k_proj"]

    one, other = changed(swap)
    found = diff_of(one, other, tmp_path)
    assert (found.only_in_a, found.only_in_b) == ((DOWN_PROJ,), (K_PROJ,))
    lost, new = delta(one, DOWN_PROJ), delta(other, K_PROJ)
    whole = sum(np.linalg.norm(delta(one, row.module)) ** 2 for row in found.modules)
    whole += np.linalg.norm(lost) ** 2
    apart = np.sqrt(np.linalg.norm(lost) ** 2 + np.linalg.norm(new) ** 2)
    assert found.relative_error == pytest.approx(apart / np.sqrt(whole), rel=1e-12)
    assert not found.equal


def test_order_of_target_names_is_no_difference(tmp_path: Path) -> None:
    """PEFT writes a set in any order."""
    found = diff_of(
        *changed(lambda pair: pair.config.update(target_modules=["q_proj", "down_proj"])), tmp_path
    )
    assert found.structure == ()


def test_embeddings_experts_and_bias_shifts_are_deltas(tmp_path: Path) -> None:
    """All of them through their factors."""
    experts, name = 3, "model.layers.0.mlp.experts"

    def more(seed: int) -> Pair:
        pair = good_pair()
        shapes = {
            f"{EMBEDDING}.lora_embedding_A": (RANK, VOCAB),
            f"{EMBEDDING}.lora_embedding_B": (HIDDEN, RANK),
            f"{name}.lora_A.weight": (experts * RANK, HIDDEN),
            f"{name}.lora_B.weight": (INNER, RANK * experts),
        }
        draw = np.random.default_rng(seed)
        pair.tensors |= {
            PREFIX + key: draw.standard_normal(shape).astype("float32")
            for key, shape in shapes.items()
        }
        pair.tensors[f"{PREFIX}{Q_PROJ}.lora_B.bias"] = draw.standard_normal(HIDDEN).astype("f4")
        pair.config |= {
            "target_parameters": ["mlp.experts.up_proj"],
            "peft_version": "0.21.2",
            "lora_bias": True,
        }
        return pair

    one, other = more(1), more(2)
    rows = {row.module: row for row in diff_of(one, other, tmp_path).modules}

    def full(pair: Pair, module: str) -> Any:
        if module == EMBEDDING:
            b, a = (pair.tensors[f"{PREFIX}{module}.lora_embedding_{side}"] for side in "BA")
            return b.astype(float) @ a.astype(float)
        if module.endswith(".bias"):
            return pair.tensors[f"{PREFIX}{Q_PROJ}.lora_B.bias"].astype(float)
        b, a = (pair.tensors[f"{PREFIX}{name}.lora_{side}.weight"].astype(float) for side in "BA")
        stacked = (b.reshape(INNER, RANK, experts), a.reshape(experts, RANK, HIDDEN))
        return np.einsum("ork,kri->koi", *stacked)

    for module in (EMBEDDING, f"{name}.up_proj", f"{Q_PROJ}.bias"):
        mine, theirs = full(one, module), full(other, module)
        expected = np.linalg.norm(mine - theirs) / np.linalg.norm(mine)
        assert rows[module].kind == "delta"
        assert rows[module].relative_error == pytest.approx(expected, rel=1e-9)


def with_dora(pair: Pair) -> None:
    """The same factors with a magnitude each."""
    pair.config["use_dora"] = True
    for name in list(pair.tensors):
        if name.endswith("lora_A.weight"):
            magnitude = name.replace("lora_A.weight", "lora_magnitude_vector")
            pair.tensors[magnitude] = np.ones(HIDDEN, "float32")


def test_dora_is_compared_by_its_tensors_and_says_so(tmp_path: Path) -> None:
    """Its delta depends on the base; another magnitude is a difference."""
    one, other = good_pair(), good_pair()
    with_dora(one)
    with_dora(other)
    assert diff_of(one, other, tmp_path / "same").equal
    magnitude = f"{PREFIX}{Q_PROJ}.lora_magnitude_vector"
    other.tensors[magnitude] = 2 * other.tensors[magnitude]
    found = diff_of(one, other, tmp_path / "other")
    rows = {row.module: row for row in found.modules}
    assert {row.kind for row in found.modules} == {"roles"}
    assert (rows[Q_PROJ].relative_error or 0) > 0
    assert rows[DOWN_PROJ].relative_error == 0.0
    assert "own tensors are compared" in found.findings[0].message


def test_scale_of_what_is_compared_by_tensors_counts(tmp_path: Path) -> None:
    """DoRA with twice the alpha is another adapter: in B, and not in A or the magnitude."""
    one, other = good_pair(), good_pair()
    with_dora(one)
    with_dora(other)
    other.config["lora_alpha"] = 2 * ALPHA
    found = diff_of(one, other, tmp_path)
    squares = {
        name: float((value.astype("float64") ** 2).sum()) for name, value in one.tensors.items()
    }
    scaled = SCALING**2 * sum(part for name, part in squares.items() if "lora_B" in name)
    others = sum(part for name, part in squares.items() if "lora_B" not in name)
    assert not found.equal
    assert found.relative_error == pytest.approx((scaled / (scaled + others)) ** 0.5)


def test_what_cannot_be_compared_is_different(tmp_path: Path) -> None:
    """LoRA against DoRA, or another shape: no numbers, and a finding."""
    found = diff_of(*changed(with_dora), tmp_path / "tuner")
    assert {(row.cosine, row.relative_error) for row in found.modules} == {(None, None)}
    assert (found.equal, found.relative_error) == (False, None)
    assert Code.SHAPE_MISMATCH in {finding.code for finding in found.findings}
    wider = changed(lambda pair: pair.tensors.update(lora(Q_PROJ, 2 * HIDDEN, HIDDEN)))
    rows = {row.module: row for row in diff_of(*wider, tmp_path / "shape").modules}
    assert rows[Q_PROJ].relative_error is None
    assert rows[DOWN_PROJ].relative_error == 0.0


def test_nan_is_a_difference_without_a_size(tmp_path: Path) -> None:
    """Nothing is claimed of it."""

    def spoil(pair: Pair) -> None:
        pair.tensors[Q_A] = pair.tensors[Q_A].copy()
        pair.tensors[Q_A][0, 0] = np.nan

    found = diff_of(*changed(spoil), tmp_path)
    row = next(row for row in found.modules if row.module == Q_PROJ)
    assert (row.cosine, row.relative_error) == (None, None)
    assert not found.equal


def test_delta_of_zeros_has_no_direction(tmp_path: Path) -> None:
    """Two untrained adapters are equal; an untrained one against a trained one has no ratio."""

    def untrain(pair: Pair) -> None:
        for name in list(pair.tensors):
            if "lora_B" in name:
                pair.tensors[name] = np.zeros_like(pair.tensors[name])

    zero = good_pair()
    untrain(zero)
    same = diff_of(zero, copy.deepcopy(zero), tmp_path / "same")
    assert same.equal
    assert {row.cosine for row in same.modules} == {None}
    found = diff_of(zero, good_pair(), tmp_path / "other")
    assert {row.relative_error for row in found.modules} == {None}
    back = diff_of(good_pair(), zero, tmp_path / "back")
    assert [row.relative_error for row in back.modules] == [pytest.approx(1.0)] * 4


def test_whole_tensors_are_compared_by_element_and_kept_out_of_the_totals(tmp_path: Path) -> None:
    """A saved module is a weight, not a change: its size would drown the deltas."""

    def save_head(pair: Pair) -> None:
        pair.config["modules_to_save"] = ["lm_head"]
        pair.tensors[f"{PREFIX}lm_head.weight"] = np.ones((VOCAB, HIDDEN), "float32")

    one, other = good_pair(), good_pair()
    save_head(one)
    save_head(other)
    other.tensors[f"{PREFIX}lm_head.weight"] = other.tensors[f"{PREFIX}lm_head.weight"] * 1.5
    found = diff_of(one, other, tmp_path / "both")
    row = next(row for row in found.modules if row.kind == "tensor")
    assert (row.module, row.relative_error) == ("lm_head.weight", pytest.approx(0.5))
    assert found.relative_error == 0.0
    assert not found.equal
    assert diff_of(one, good_pair(), tmp_path / "one").only_in_a == ("lm_head.weight",)


def test_checkpoints_are_compared_tensor_by_tensor(tmp_path: Path) -> None:
    """Cosine and error of each weight, what one side lacks, other shapes, the config's fields."""

    def change(pair: Pair) -> None:
        pair.base["model.norm.weight"] = pair.base["model.norm.weight"] * 1.25
        pair.base["lm_head.weight"] = pair.base["lm_head.weight"][:-1]
        del pair.base[f"{K_PROJ}.weight"]
        pair.base["extra"] = np.ones(3, "float32")
        pair.base_config["vocab_size"] = VOCAB - 1

    found = diff_of(*changed(change), tmp_path, base=True)
    rows = {row.module: row for row in found.modules}
    assert rows["model.norm.weight"].relative_error == pytest.approx(0.25)
    assert rows["model.norm.weight"].cosine == pytest.approx(1.0)
    assert rows["lm_head.weight"].relative_error is None
    assert rows[f"{Q_PROJ}.weight"].relative_error == 0.0
    assert (found.only_in_a, found.only_in_b) == ((f"{K_PROJ}.weight",), ("extra",))
    assert [row.field for row in found.structure] == ["vocab_size"]


def test_checkpoint_in_another_dtype_is_as_far_off_as_its_rounding(tmp_path: Path) -> None:
    """float16 of float32: about 2^-12, and the dtypes are named."""

    def narrow(pair: Pair) -> None:
        pair.base = {name: tensor.astype("float16") for name, tensor in pair.base.items()}

    found = diff_of(*changed(narrow), tmp_path, base=True)
    assert 1e-5 < (found.relative_error or 0) < 2.0**-11
    assert ("dtypes", {"F32": 21}, {"F16": 21}) in [
        (row.field, row.a, row.b) for row in found.structure
    ]


def test_quantized_checkpoint_is_decoded(tmp_path: Path) -> None:
    """FP8 with a scale a block against the numbers it stands for."""
    pair = good_pair()
    name = f"{Q_PROJ}.weight"
    values = torch.from_numpy(pair.base[name])
    scale = values.abs().amax() / 448
    packed = (values / scale).to(torch.float8_e4m3fn)
    quantized = good_pair()
    quantized.base[name] = Raw(
        "F8_E4M3", (HIDDEN, HIDDEN), packed.view(torch.uint8).numpy().tobytes()
    )
    quantized.base[f"{Q_PROJ}.weight_scale_inv"] = np.full((1, 1), float(scale), "float32")
    quantized.base_config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [HIDDEN, HIDDEN],
        "activation_scheme": "dynamic",
    }
    found = diff_of(pair, quantized, tmp_path, base=True)
    rows = {row.module: row for row in found.modules}
    plain = (packed.double() * scale.double()).numpy() - pair.base[name].astype(float)
    expected = np.linalg.norm(plain) / np.linalg.norm(pair.base[name].astype(float))
    assert rows[name].relative_error == pytest.approx(expected, rel=0.05)
    assert (found.only_in_a, found.only_in_b) == ((), ())


def test_adapter_and_checkpoint_cannot_be_compared(tmp_path: Path) -> None:
    """Exit 4; a path that is not there is exit 2."""
    base, adapter = good_pair().write(tmp_path)
    with pytest.raises(MismatchError):
        api.diff(adapter, base)
    with pytest.raises(UsageError):
        api.diff(adapter, tmp_path / "absent")


def test_progress_counts_the_bytes_of_the_first_checkpoint(tmp_path: Path) -> None:
    """It ends at all of them."""
    base, _ = good_pair().write(tmp_path / "a")
    shutil.copytree(base, tmp_path / "b")
    seen: list[tuple[int, int]] = []
    api.diff(base, tmp_path / "b", progress=lambda done, whole: seen.append((done, whole)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_result_can_be_taken_apart(tmp_path: Path) -> None:
    """Typed and frozen."""
    found = diff_of(good_pair(), good_pair(), tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.kind = "other"  # type: ignore[misc]


@pytest.mark.parametrize("base", [False, True])
def test_progress_ends_with_everything(base: bool, tmp_path: Path) -> None:
    """Bytes of both sides, in steps that only grow; of adapters and of models."""
    told: list[tuple[int, int]] = []
    place = 0 if base else 1
    one, other = (good_pair().write(tmp_path / name)[place] for name in "ab")
    api.diff(one, other, progress=lambda done, whole: told.append((done, whole)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({whole for _, whole in told}) == 1
    assert told[-1][0] == told[-1][1] > 0
    assert len(told) > 2
