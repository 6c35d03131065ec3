"""The similarity matrix of adapters, and their size against the base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small_pairs
from adaptool import api
from adaptool.findings import Code, Severity
from adaptool.model.inspected import Inspected
from adaptool.model.results import AdapterSummary
from bad_adapters import (
    ALPHA,
    DOWN_PROJ,
    HIDDEN,
    INNER,
    K_PROJ,
    PREFIX,
    Q_PROJ,
    RANK,
    Pair,
    good_pair,
    lora,
)


def together(folder: Path, *pairs: Pair, **options: Any) -> Inspected:
    """Inspect the adapters of all pairs at once."""
    adapters = [pair.write(folder / str(place))[1] for place, pair in enumerate(pairs)]
    found = api.inspect(*adapters, **options)
    assert isinstance(found, Inspected)
    return found


def flat(pair: Pair, modules: dict[str, tuple[int, int]], scaling: float) -> Any:
    """All deltas of an adapter one after the other, zeros where it has none."""
    parts = []
    for module, shape in modules.items():
        names = [f"{PREFIX}{module}.lora_{side}.weight" for side in "BA"]
        if names[0] in pair.tensors:
            b, a = (pair.tensors[name].astype(float) for name in names)
            parts.append((scaling * b @ a).ravel())
        else:
            parts.append(np.zeros(shape).ravel())
    return np.concatenate(parts)


def test_cosine_is_that_of_all_deltas_as_one_vector(tmp_path: Path) -> None:
    """Ranks, scales and targets differ; a module that one lacks is zero there."""
    one, other = good_pair(), good_pair()
    for name in list(other.tensors):
        if "down_proj" in name:
            del other.tensors[name]
    other.tensors |= lora(K_PROJ, 8, HIDDEN, 2) | lora(Q_PROJ, HIDDEN, HIDDEN, 2)
    other.config |= {"r": 2, "target_modules": ["q_proj", "k_proj"]}
    other.config["rank_pattern"] = {"layers.1.self_attn.q_proj": RANK}
    other.config["alpha_pattern"] = {"layers.1.self_attn.q_proj": 2 * ALPHA}
    found = together(tmp_path, one, other, values=True)
    modules = {
        Q_PROJ: (HIDDEN, HIDDEN),
        Q_PROJ.replace(".0.", ".1."): (HIDDEN, HIDDEN),
        DOWN_PROJ: (HIDDEN, INNER),
        DOWN_PROJ.replace(".0.", ".1."): (HIDDEN, INNER),
        K_PROJ: (8, HIDDEN),
    }
    x, y = flat(one, modules, 2.0), flat(other, modules, 4.0)
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert found.similarity is not None
    assert found.similarity[0][1] == pytest.approx(cosine, abs=1e-12)
    assert found.similarity[1][0] == found.similarity[0][1]
    assert (found.similarity[0][0], found.similarity[1][1]) == (1.0, 1.0)


def test_opposite_adapter_is_minus_one(tmp_path: Path) -> None:
    """And itself in another file is 1."""
    opposite = good_pair()
    opposite.config["lora_alpha"] = -ALPHA
    found = together(tmp_path, good_pair(), opposite, good_pair(), values=True).similarity
    assert found is not None
    assert found[0] == (1.0, pytest.approx(-1.0), pytest.approx(1.0))


def test_what_is_no_low_rank_adapter_has_no_similarity(tmp_path: Path) -> None:
    """DoRA, a checkpoint, an untrained adapter: null in their rows and columns only."""
    dora, zero = good_pair(), good_pair()
    dora.config["use_dora"] = True
    for name in list(dora.tensors):
        if name.endswith("lora_A.weight"):
            magnitude = name.replace("lora_A.weight", "lora_magnitude_vector")
            dora.tensors[magnitude] = np.ones(HIDDEN, "float32")
        else:
            zero.tensors[name] = np.zeros_like(zero.tensors[name])
    base, good = good_pair().write(tmp_path / "good")
    paths = [pair.write(tmp_path / name)[1] for name, pair in (("dora", dora), ("zero", zero))]
    found = api.inspect(good, *paths, base, good, values=True)
    assert isinstance(found, Inspected)
    matrix = found.similarity
    assert matrix is not None
    assert matrix[0] == (1.0, None, None, None, pytest.approx(1.0))
    assert matrix[1] == matrix[2] == matrix[3] == (None,) * 5


def test_other_shapes_of_one_module_have_no_similarity(tmp_path: Path) -> None:
    """They belong to different models."""
    wide = good_pair()
    wide.tensors |= lora(Q_PROJ, 2 * HIDDEN, HIDDEN)
    found = together(tmp_path, good_pair(), wide, values=True).similarity
    assert found == ((1.0, None), (None, 1.0))


def test_headers_alone_give_no_similarity(tmp_path: Path) -> None:
    """null in JSON: the weights were not read."""
    found = together(tmp_path, good_pair(), good_pair())
    assert found.similarity is None
    assert found.as_json()["similarity"] is None


def base_norms(adapter: Path, base: Path) -> dict[str, float | None]:
    """|W| of every module as inspect gives it."""
    found = api.inspect(adapter, base=base, values=True)
    assert isinstance(found, AdapterSummary)
    return {row.module: row.base_norm for row in found.modules}


def test_base_norm_is_that_of_the_weight(tmp_path: Path) -> None:
    """And the relative norm is the quotient."""
    pair = good_pair()
    base, adapter = pair.write(tmp_path)
    for module, norm in base_norms(adapter, base).items():
        expected = np.linalg.norm(pair.base[f"{module}.weight"].astype(float))
        assert norm == pytest.approx(expected, rel=1e-12)
    found = api.inspect(adapter, base=base, values=True)
    assert isinstance(found, AdapterSummary)
    row = found.modules[0]
    assert row.relative_norm == pytest.approx((row.norm or 0) / (row.base_norm or 1))


def test_base_norm_follows_fusions_experts_and_ties(tmp_path: Path) -> None:
    """q in a fused qkv is its rows; a stack is all its experts; a tied head is the embedding."""
    pair = good_pair()
    prefix = "model.layers.0.self_attn"
    parts = [pair.base.pop(f"{prefix}.{name}_proj.weight") for name in "qkv"]
    pair.base[f"{prefix}.qkv_proj.weight"] = np.concatenate(parts)
    pair.base_config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    base, adapter = pair.write(tmp_path / "fused")
    expected = np.linalg.norm(parts[0].astype(float))
    assert base_norms(adapter, base)[Q_PROJ] == pytest.approx(expected, rel=1e-12)

    experts = small_pairs.write("experts", tmp_path / "experts", dtype="float32")
    stacked = small_pairs.PAIRS["experts"]().base
    for module, norm in base_norms(experts.adapter, experts.base).items():
        assert norm == pytest.approx(np.linalg.norm(stacked[module].astype(float)), rel=1e-9)

    tied = good_pair()
    del tied.base["lm_head.weight"]
    tied.base_config["tie_word_embeddings"] = True
    tied.tensors = lora("lm_head", len(tied.base["model.embed_tokens.weight"]), HIDDEN)
    tied.config["target_modules"] = ["lm_head"]
    base, adapter = tied.write(tmp_path / "tied")
    expected = np.linalg.norm(tied.base["model.embed_tokens.weight"].astype(float))
    assert base_norms(adapter, base)["lm_head"] == pytest.approx(expected, rel=1e-12)


def test_base_that_does_not_fit_is_a_finding(tmp_path: Path) -> None:
    """inspect goes on: it describes, validate judges."""
    pair = good_pair()
    base, _ = pair.write(tmp_path / "small")
    wide = copy.deepcopy(pair)
    wide.tensors |= lora(Q_PROJ, 2 * HIDDEN, HIDDEN)
    _, adapter = wide.write(tmp_path / "wide")
    found = api.inspect(adapter, base=base, values=True)
    assert isinstance(found, AdapterSummary)
    assert {row.base_norm for row in found.modules} == {None}
    assert [(each.code, each.severity) for each in found.findings] == [
        (Code.SHAPE_MISMATCH, Severity.WARNING)
    ]


def test_module_that_the_base_lacks_has_no_base_norm(tmp_path: Path) -> None:
    """The others have."""
    pair = good_pair()
    pair.tensors |= lora("model.layers.7.self_attn.q_proj", HIDDEN, HIDDEN)
    base, adapter = pair.write(tmp_path)
    norms = base_norms(adapter, base)
    assert norms["model.layers.7.self_attn.q_proj"] is None
    assert norms[Q_PROJ] is not None


def test_ranks_at_energy_are_the_smallest_that_keep_it(tmp_path: Path) -> None:
    """Against the singular values of the full delta."""
    pair = good_pair()
    _, adapter = pair.write(tmp_path)
    found = api.inspect(adapter, values=True)
    assert isinstance(found, AdapterSummary)
    row = next(row for row in found.as_json()["modules"] if row["module"] == Q_PROJ)
    b, a = (pair.tensors[f"{PREFIX}{Q_PROJ}.lora_{side}.weight"].astype(float) for side in "BA")
    energy = np.cumsum(np.linalg.svd(b @ a, compute_uv=False) ** 2)
    for share in (0.9, 0.99, 0.999):
        expected = int(np.argmax(energy >= share * energy[-1])) + 1
        assert row["rank_at"][str(share)] == expected
