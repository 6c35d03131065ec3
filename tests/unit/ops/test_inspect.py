"""What inspect says of adapters and checkpoints, against numbers taken by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptool import api
from adaptool.errors import InputError, UsageError
from adaptool.findings import Code, Severity
from adaptool.layouts import Evidence, kohya
from adaptool.model.results import AdapterSummary, CheckpointSummary, ModuleRow
from adaptool.store.adapter_files import AdapterFiles
from bad_adapters import (
    ALPHA,
    CONFIG,
    EMBEDDING,
    HIDDEN,
    INNER,
    PREFIX,
    Q_A,
    Q_B,
    Q_PROJ,
    RANK,
    VOCAB,
    WEIGHTS,
    Pair,
    good_base,
    good_pair,
    lora,
    save,
)

SCALING = ALPHA / RANK
TRAINED = 2 * RANK * (HIDDEN + HIDDEN) + 2 * RANK * (HIDDEN + INNER)


def adapter_of(pair: Pair, folder: Path, **options: Any) -> AdapterSummary:
    """Inspect the pair's adapter."""
    _, adapter = pair.write(folder)
    summary = api.inspect(adapter, **options)
    assert isinstance(summary, AdapterSummary)
    return summary


def checkpoint_of(pair: Pair, folder: Path, **options: Any) -> CheckpointSummary:
    """Inspect the pair's base."""
    base, _ = pair.write(folder)
    summary = api.inspect(base, **options)
    assert isinstance(summary, CheckpointSummary)
    return summary


def test_adapter_is_summed_up(tmp_path: Path) -> None:
    """Every key of the contract, for the good adapter."""
    found = adapter_of(good_pair(), tmp_path)
    assert found.layout == "peft"
    assert found.tuners == {"lora": 4}
    assert found.base == "someone/tiny"
    assert found.parameters == TRAINED
    assert found.bytes == (tmp_path / "adapter" / WEIGHTS).stat().st_size
    assert found.dtypes == {"F32": 8}
    assert found.ranks == {"min": RANK, "max": RANK, "histogram": {str(RANK): 4}}
    assert found.scaling == {"min": SCALING, "max": SCALING}
    assert found.targets == {"down_proj": 2, "q_proj": 2}
    assert found.carried == ()
    assert found.share_of_base is None
    assert found.findings == ()
    assert json.loads(json.dumps(found.as_json()))["module_count"] == 4


def test_target_is_the_last_name_with_the_number_behind_it() -> None:
    """`to_out.0` is no target called 0."""
    names = {"a.b.to_q": "to_q", "a.to_out.0": "to_out.0", "net": "net", "3": "3", "a.3": "a.3"}
    for module, target in names.items():
        assert ModuleRow(module, "lora", 4, 1.0, (8, 8), 64, 1.0).target == target


def test_ranks_and_scales_are_each_modules_own(tmp_path: Path) -> None:
    """Patterns count: a histogram of ranks, the smallest and the largest scale."""
    pair = good_pair()
    pair.tensors |= lora(Q_PROJ, HIDDEN, HIDDEN, 2)
    pair.config |= {"rank_pattern": {"layers.0.self_attn.q_proj": 2}}
    pair.config |= {"alpha_pattern": {"down_proj": 1}}
    found = adapter_of(pair, tmp_path)
    assert found.ranks == {"min": 2, "max": RANK, "histogram": {"2": 1, str(RANK): 3}}
    assert found.scaling == {"min": 1 / RANK, "max": ALPHA / 2}


def test_saving_is_full_delta_over_factors(tmp_path: Path) -> None:
    """m n / ((m + n) r), for each module."""
    rows = {row.module: row for row in adapter_of(good_pair(), tmp_path).modules}
    row = rows["model.layers.1.mlp.down_proj"]
    assert row.shape == (HIDDEN, INNER)
    assert row.saving == pytest.approx(HIDDEN * INNER / ((HIDDEN + INNER) * RANK))
    assert row.parameters == (HIDDEN + INNER) * RANK
    assert (row.norm, row.effective_rank, row.nonfinite) == (None, None, None)


def test_share_of_base_counts_parameters(tmp_path: Path) -> None:
    """Adapter parameters over base parameters."""
    found = adapter_of(good_pair(), tmp_path, base=tmp_path / "base")
    total = sum(tensor.size for tensor in good_base().values())
    assert found.share_of_base == pytest.approx(TRAINED / total)


def test_quantized_base_has_no_share(tmp_path: Path) -> None:
    """Packed weights do not tell how many parameters there are, and inspect says so."""
    pair = good_pair()
    pair.base_config["quantization_config"] = {"quant_method": "gptq"}
    found = adapter_of(pair, tmp_path, base=tmp_path / "base")
    assert found.share_of_base is None
    assert [(each.code, each.severity) for each in found.findings] == [
        (Code.BASE_QUANTIZED, Severity.NOTE)
    ]


def test_carried_tensors_are_named_with_their_kind(tmp_path: Path) -> None:
    """Saved modules, biases, token rows and copies of the base; copies are no training."""
    pair = good_pair()
    pair.config |= {
        "modules_to_save": ["lm_head"],
        "bias": "all",
        "trainable_token_indices": {"embed_tokens": [1, 5]},
    }
    ones = {
        f"{PREFIX}lm_head.weight": (VOCAB, HIDDEN),
        f"{PREFIX}{Q_PROJ}.bias": (HIDDEN,),
        f"{PREFIX}{EMBEDDING}.token_adapter.trainable_tokens_delta": (2, HIDDEN),
        f"{PREFIX}{Q_PROJ}.base_layer.weight": (HIDDEN, HIDDEN),
    }
    pair.tensors |= {name: np.ones(shape, "float32") for name, shape in ones.items()}
    found = adapter_of(pair, tmp_path)
    assert set(found.carried) == {
        "lm_head.weight (saved module)",
        f"{Q_PROJ}.bias (bias)",
        f"{EMBEDDING}.weight (2 token rows)",
        f"{Q_PROJ}.weight (copy of the base)",
    }
    assert found.parameters == TRAINED + VOCAB * HIDDEN + HIDDEN + 2 * HIDDEN


def test_bias_shift_counts_with_its_module(tmp_path: Path) -> None:
    """lora_bias makes no module of its own."""
    pair = good_pair()
    pair.config["lora_bias"] = True
    pair.tensors[f"{PREFIX}{Q_PROJ}.lora_B.bias"] = np.ones(HIDDEN, "float32")
    found = adapter_of(pair, tmp_path)
    assert found.tuners == {"lora": 4}
    assert found.parameters == TRAINED + HIDDEN
    rows = {row.module: row.parameters for row in found.modules}
    assert rows[Q_PROJ] == 2 * RANK * HIDDEN + HIDDEN


def test_provenance_is_what_config_and_file_say(tmp_path: Path) -> None:
    """PEFT's version and task, and the file's metadata without the config kept in it."""
    pair = good_pair()
    pair.config |= {"peft_version": "0.21.2", "revision": "abc"}
    _, adapter = pair.write(tmp_path)
    content = (adapter / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] |= {"made_by": "me", "lora_adapter_metadata": json.dumps(pair.config)}
    text = json.dumps(header).encode()
    single = tmp_path / "single.safetensors"
    single.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    found = api.inspect(single)
    assert isinstance(found, AdapterSummary)
    assert found.provenance == {
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "task_type": "CAUSAL_LM",
        "revision": "abc",
        "metadata": {"made_by": "me"},
    }


def test_values_agree_with_full_svd(tmp_path: Path) -> None:
    """Norm and effective rank of each scaled delta, from singular values of the product."""
    pair = good_pair()
    rows = {row.module: row for row in adapter_of(pair, tmp_path, values=True).modules}
    delta = SCALING * pair.tensors[Q_B].astype(float) @ pair.tensors[Q_A].astype(float)
    energy = np.linalg.svd(delta, compute_uv=False)[:RANK] ** 2
    shares = energy / energy.sum()
    row = rows[Q_PROJ]
    assert row.norm == pytest.approx(np.linalg.norm(delta), rel=1e-12)
    assert row.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert row.nonfinite == 0


def test_values_of_embedding_and_convolution(tmp_path: Path) -> None:
    """A delta's matrix is the same whatever kind of layer it belongs to."""
    pair = good_pair()
    shapes = {
        f"{EMBEDDING}.lora_embedding_A": (RANK, VOCAB),
        f"{EMBEDDING}.lora_embedding_B": (HIDDEN, RANK),
        "conv.lora_A.weight": (RANK, 3, 2, 2),
        "conv.lora_B.weight": (8, RANK, 1, 1),
    }
    rng = np.random.default_rng(0)
    new = {name: rng.standard_normal(shape).astype("float32") for name, shape in shapes.items()}
    pair.tensors |= {PREFIX + name: tensor for name, tensor in new.items()}
    rows = {row.module: row for row in adapter_of(pair, tmp_path, values=True).modules}
    for module, left, right in (
        (EMBEDDING, "lora_embedding_B", "lora_embedding_A"),
        ("conv", "lora_B.weight", "lora_A.weight"),
    ):
        b, a = (new[f"{module}.{ending}"].astype(float) for ending in (left, right))
        delta = SCALING * b.reshape(len(b), -1) @ a.reshape(RANK, -1)
        assert rows[module].norm == pytest.approx(np.linalg.norm(delta), rel=1e-12)


def test_stacked_experts_are_one_module(tmp_path: Path) -> None:
    """The norm is over all experts, the effective rank their mean, the shape has the stack."""
    pair = good_pair()
    experts, name = 3, "model.layers.0.mlp.experts"
    rng = np.random.default_rng(1)
    a = rng.standard_normal((experts * RANK, HIDDEN)).astype("float32")
    b = rng.standard_normal((INNER, RANK * experts)).astype("float32")
    pair.tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    pair.config |= {"target_parameters": ["mlp.experts.up_proj"], "peft_version": "0.21.2"}
    rows = {row.module: row for row in adapter_of(pair, tmp_path, values=True).modules}
    row = rows[f"{name}.up_proj"]
    # Expert-major A, rank-major B: PEFT's einsum over (E, r, in) and (out, r, E).
    delta = SCALING * np.einsum(
        "ork,kri->koi", b.reshape(INNER, RANK, experts), a.reshape(experts, RANK, HIDDEN)
    ).astype(float)
    assert row.shape == (experts, INNER, HIDDEN)
    assert row.norm == pytest.approx(np.linalg.norm(delta), rel=1e-6)
    assert 1 < (row.effective_rank or 0) <= RANK


def test_nan_is_counted_and_leaves_no_norm(tmp_path: Path) -> None:
    """A module with NaN has a count, no norm; the finding names the tensor."""
    pair = good_pair()
    pair.tensors[Q_A][0, :3] = np.nan
    found = adapter_of(pair, tmp_path, values=True)
    row = next(row for row in found.modules if row.module == Q_PROJ)
    assert (row.norm, row.effective_rank, row.nonfinite) == (None, None, 3)
    assert [(each.code, each.tensor) for each in found.findings] == [(Code.NOT_FINITE, Q_A)]


def test_dora_has_no_norm_without_its_base(tmp_path: Path) -> None:
    """Its delta depends on W, so none is claimed."""
    pair = good_pair()
    pair.config["use_dora"] = True
    for name in list(pair.tensors):
        if name.endswith("lora_A.weight"):
            magnitude = name.replace("lora_A.weight", "lora_magnitude_vector")
            pair.tensors[magnitude] = np.ones(HIDDEN, "float32")
    found = adapter_of(pair, tmp_path, values=True)
    assert found.tuners == {"dora": 4}
    assert {row.norm for row in found.modules} == {None}
    assert {row.nonfinite for row in found.modules} == {0}


def test_checkpoint_is_summed_up(tmp_path: Path) -> None:
    """Every key of the contract, for the good base."""
    found = checkpoint_of(good_pair(), tmp_path, values=True)
    tensors = good_base()
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert found.tensor_count == len(tensors)
    assert found.shards == (("model.safetensors", size),)
    assert found.bytes == size
    assert found.parameters == sum(tensor.size for tensor in tensors.values())
    assert found.dtypes == {"F32": len(tensors)}
    assert (found.quantization, found.tied) == (None, ())
    assert found.architecture == "LlamaForCausalLM"
    assert found.findings == ()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ("quantization", {"group_size": 64, "bits": 4}, "quantization"),
        ("quantization_config", None, None),
    ],
)
def test_quantization_is_named(
    key: str, value: object, expected: str | None, tmp_path: Path
) -> None:
    """What config.json calls the scheme."""
    pair = good_pair()
    pair.base_config[key] = value
    assert checkpoint_of(pair, tmp_path).quantization == expected


def test_tied_weights_are_paired(tmp_path: Path) -> None:
    """Both names of the shared tensor, also where only one is stored."""
    pair = good_pair()
    del pair.base["lm_head.weight"]
    pair.base_config["tie_word_embeddings"] = True
    tied = (("model.embed_tokens.weight", "lm_head.weight"),)
    assert checkpoint_of(pair, tmp_path).tied == tied


def test_model_type_stands_in_for_architecture(tmp_path: Path) -> None:
    """Where config.json names no class."""
    pair = good_pair()
    del pair.base_config["architectures"]
    assert checkpoint_of(pair, tmp_path).architecture == "llama"


def test_single_files_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    """An adapter's keys make an adapter, whatever the file is called; others a checkpoint."""
    base, adapter = good_pair().write(tmp_path)
    renamed = adapter / "model.bin"
    (adapter / WEIGHTS).rename(renamed)
    assert isinstance(api.inspect(renamed), AdapterSummary)
    assert isinstance(api.inspect(base / "model.safetensors"), CheckpointSummary)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "my style.safetensors"])
@pytest.mark.parametrize("inside", [True, False])
def test_other_layouts_are_never_taken_for_a_model(name: str, inside: bool, tmp_path: Path) -> None:
    """A kohya or diffusers file, named itself or alone in its folder, is refused as an adapter."""
    tensor = np.ones((4, 4), "float32")
    save(tmp_path / name, {"lora_unet_mid_block_to_q.lora_down.weight": tensor})
    with pytest.raises(InputError) as caught:
        api.inspect(tmp_path if inside else tmp_path / name)
    found = caught.value.code
    assert found in (Code.KEYS_UNRECOGNISED, Code.CONFIG_MISSING, Code.FACTOR_MISSING)


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    """B1: with the nearest name."""
    good_pair().write(tmp_path)
    with pytest.raises(UsageError) as caught:
        api.inspect(tmp_path / "adaptor")
    assert (caught.value.code, caught.value.exit_code) == (Code.NOT_FOUND, 2)
    assert caught.value.hint == "did you mean adapter?"


def test_folder_of_neither_kind_lists_what_was_looked_for(tmp_path: Path) -> None:
    """B2: both an adapter's files and a model's."""
    with pytest.raises(UsageError) as caught:
        api.inspect(tmp_path)
    assert (caught.value.code, caught.value.exit_code) == (Code.CHECKPOINT_MISSING, 2)
    for name in (CONFIG, WEIGHTS, "model.safetensors.index.json", "model.safetensors,"):
        assert name in caught.value.message


def test_folder_of_named_adapters_names_them(tmp_path: Path) -> None:
    """B2: one level up from several adapters."""
    good_pair().write(tmp_path / "first")
    (tmp_path / "first" / "adapter").rename(tmp_path / "style")
    with pytest.raises(UsageError) as caught:
        api.inspect(tmp_path)
    assert "style" in caught.value.message
    assert str(tmp_path / "style") in (caught.value.hint or "")


def test_every_layout_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of an adapter say so: only who decodes the file asks all layouts, over every key."""
    asked: list[str] = []
    plain = kohya.sniff

    def counted(files: AdapterFiles) -> Evidence:
        asked.append(files.name)
        return plain(files)

    monkeypatch.setattr(kohya, "sniff", counted)
    _, adapter = good_pair().write(tmp_path)
    api.inspect(adapter / WEIGHTS)
    assert len(asked) == 1
