"""What `adaptool merge` leaves behind, beyond what the walk over the flags looks at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from command_line import ADAPTER, BASE, run
from in_process import ask, done, refused
from small_pairs import write


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 - safetensors' handle is no mapping
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def logits(folder: Path, **options: Any) -> torch.Tensor:
    """What transformers' model at `folder` answers; nothing may be missing or left over."""
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert {name: list(found) for name, found in loading.items() if found} == {}
    with torch.inference_mode():
        answer: torch.Tensor = model(torch.arange(3, 19)[None]).logits
    return answer


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    done("merge", BASE, ADAPTER, out)
    return out


def test_a_fresh_process_writes_the_same(merged: Path, tmp_path: Path) -> None:
    """The installed entry point: one line on stdout, nothing on stderr, all files there."""
    answer = run("merge", BASE, ADAPTER, tmp_path / "out")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("merged 14 of 21 tensors")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in merged.iterdir()
    }


def test_transformers_loads_the_result(merged: Path) -> None:
    """It is the base's architecture, and not the base's answer."""
    assert not torch.equal(logits(merged), logits(BASE))


def test_new_shards_load_and_answer_the_same(merged: Path, tmp_path: Path) -> None:
    """--max-shard-size: an index that is right, shards within the limit, the same model."""
    out = tmp_path / "out"
    done("merge", BASE, ADAPTER, out, "--max-shard-size", "50KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    sizes = dict.fromkeys(index["weight_map"].values(), 0)
    for name, tensor in tensors_of(out).items():
        sizes[index["weight_map"][name]] += tensor.nbytes
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert max(sizes.values()) <= 50_000
    count = len(sizes)
    assert sorted(sizes) == [
        f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    ]
    assert {path.name for path in out.glob("*.safetensors")} == set(sizes)
    assert torch.equal(logits(out), logits(merged))


def test_one_large_shard_needs_no_index(merged: Path, tmp_path: Path) -> None:
    """--max-shard-size above the model's size: one file under the name that loaders look for."""
    out = tmp_path / "out"
    done("merge", BASE, ADAPTER, out, "--max-shard-size", "1GB")
    assert {path.name for path in out.glob("model*")} == {"model.safetensors"}
    assert torch.equal(logits(out), logits(merged))


def test_tensor_larger_than_a_shard_stands_alone(merged: Path, tmp_path: Path) -> None:
    """32768 bytes do not fit a shard of 20000: one of its own, as transformers writes it."""
    out = tmp_path / "out"
    done("merge", BASE, ADAPTER, out, "--max-shard-size", "20KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    file = index["weight_map"]["model.embed_tokens.weight"]
    assert list(index["weight_map"].values()).count(file) == 1
    assert torch.equal(logits(out), logits(merged))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_is_what_transformers_finds(dtype: str, merged: Path, tmp_path: Path) -> None:
    """--dtype: tensors, config and values; float32 holds what bfloat16 rounded."""
    out = tmp_path / "out"
    done("merge", BASE, ADAPTER, out, "--dtype", dtype)
    wanted = getattr(torch, dtype)
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {wanted}
    assert logits(out).dtype is wanted
    kept, found = tensors_of(merged), tensors_of(out)
    for name, tensor in found.items():
        assert torch.equal(tensor.bfloat16(), kept[name]) or dtype == "float16"
        assert torch.allclose(tensor.float(), kept[name].float(), rtol=2**-7, atol=1e-6)


def _factor(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    factors = tensors_of(ADAPTER)
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    return factors[f"{prefix}.lora_A.weight"], factors[f"{prefix}.lora_B.weight"]


def test_float64_is_the_formula_rounded_once(merged: Path) -> None:
    """W + 2 B A in float64, rounded by torch to float32 and bfloat16 where that is exact."""
    base, found = tensors_of(BASE), tensors_of(merged)
    for name in found:
        if "_proj" not in name:
            assert torch.equal(found[name], base[name])
            continue
        a, b = (factor.double() for factor in _factor(name))
        exact = base[name].double() + 2.0 * b @ a
        assert torch.equal(found[name], exact.float().bfloat16())


def test_float32_is_what_peft_computes(tmp_path: Path) -> None:
    """--precision float32: (B @ A) * s, then the sum, then one rounding."""
    out = tmp_path / "out"
    done("merge", BASE, ADAPTER, out, "--precision", "float32")
    base = tensors_of(BASE)
    for name, tensor in tensors_of(out).items():
        if "_proj" in name:
            a, b = _factor(name)
            assert torch.equal(tensor, (base[name].float() + (b @ a) * 2.0).bfloat16())


def test_tie_untie_is_a_model_that_loads_untied(tmp_path: Path) -> None:
    """--tie: an adapter on the head alone gives a head of its own, and transformers sees it."""
    base, adapter = _tied(tmp_path)
    done("merge", base, adapter, tmp_path / "untied")
    done("merge", base, adapter, tmp_path / "kept", "--tie", "keep")
    from transformers import AutoModelForCausalLM

    untied = AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    assert not torch.equal(untied.lm_head.weight, untied.model.embed_tokens.weight)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "kept")
    assert kept.lm_head.weight is kept.model.embed_tokens.weight
    assert torch.equal(kept.lm_head.weight, untied.lm_head.weight)
    assert not torch.equal(logits(tmp_path / "untied"), logits(tmp_path / "kept"))


def _tied(folder: Path) -> tuple[Path, Path]:
    from safetensors.torch import save_file

    base, adapter = folder / "base", folder / "adapter"
    tensors = tensors_of(BASE)
    del tensors["lm_head.weight"]
    base.mkdir()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = json.loads((BASE / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    adapter.mkdir()
    draw = torch.Generator().manual_seed(0)
    factors = {
        "base_model.model.lm_head.lora_A.weight": torch.randn(8, 64, generator=draw),
        "base_model.model.lm_head.lora_B.weight": torch.randn(256, 8, generator=draw),
    }
    save_file(factors, adapter / "adapter_model.safetensors")
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["lm_head"]})
    )
    return base, adapter


def test_sha256sum_agrees(tmp_path: Path) -> None:
    """--checksum: coreutils' own tool finds every file as it was written, and one that is not."""
    out = tmp_path / "out"
    done("merge", BASE, ADAPTER, out, "--checksum")
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=out, check=False, capture_output=True).returncode == 0
    listed = {line.partition("  ")[2] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert listed == names(out) - {"SHA256SUMS", "adaptool.json"}
    (out / "config.json").write_text("{}")
    spoiled = subprocess.run(check, cwd=out, check=False, capture_output=True, text=True)
    assert spoiled.returncode == 1
    assert "config.json" in spoiled.stdout


def test_without_checksum_there_is_none(merged: Path) -> None:
    """It costs a pass over the output, so it is asked for."""
    assert "SHA256SUMS" not in names(merged)
    assert "sha256" not in json.loads((merged / "adaptool.json").read_text())["outputs"][0]


def test_what_belongs_to_the_model_is_copied_and_nothing_else(tmp_path: Path) -> None:
    """Not the card, not earlier receipts, not weights in other forms; the adapter's words win."""
    pair = write("lora", tmp_path)
    kept = ("chat_template.jinja", "modeling_odd.py", "vocab.json")
    left = ("README.md", "SHA256SUMS", "adaptool.json", "adaptool.unmerge", "model.gguf")
    for name in (*kept, *left, "pytorch_model.bin", "consolidated.00.pth"):
        (pair.base / name).write_text("the base's")
    for folder in (".git", ".cache"):
        (pair.base / folder).mkdir()
        (pair.base / folder / "config").write_text("x")
    (pair.adapter / "chat_template.jinja").write_text("the adapter's")
    (pair.adapter / "README.md").write_text("the adapter's")
    done("merge", pair.base, pair.adapter, tmp_path / "out")
    weights = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    written = {"config.json", "model.safetensors.index.json", "generation_config.json"}
    assert names(tmp_path / "out") == {
        *kept,
        *weights,
        *written,
        "tokenizer.json",
        "adaptool.json",
    }
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the adapter's"
    assert (tmp_path / "out" / "vocab.json").read_text() == "the base's"


def _empty(out: Path) -> None:
    out.mkdir()


def _old_merge(out: Path) -> None:
    done("merge", BASE, ADAPTER, out, "--weight", "0.5")


def _old_merge_and_more(out: Path) -> None:
    _old_merge(out)
    (out / "notes.txt").write_text("mine")


def _old_merge_edited(out: Path) -> None:
    _old_merge(out)
    (out / "config.json").write_text("{}")


def _plain_file(out: Path) -> None:
    out.write_text("mine")


def _foreign(out: Path) -> None:
    shutil.copytree(BASE, out)


def _link_to_nothing(out: Path) -> None:
    out.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("prepare", "plain", "forced"),
    [
        (_empty, 0, 0),
        (_old_merge, 5, 0),
        (_old_merge_and_more, 5, 5),
        (_old_merge_edited, 5, 5),
        (_plain_file, 5, 0),
        (_foreign, 5, 5),
        (_link_to_nothing, 0, 0),
    ],
)
def test_overwrite_replaces_only_what_is_accounted_for(
    prepare: Callable[[Path], None], plain: int, forced: int, merged: Path, tmp_path: Path
) -> None:
    """An empty directory, a file, a merge of ours; never a directory with anything else in it."""
    for flags, code in (([], plain), (["--overwrite"], forced)):
        home = tmp_path / f"home{len(flags)}"
        home.mkdir()
        prepare(home / "out")
        before = _everything(home)
        answer = ask("merge", BASE, ADAPTER, home / "out", *flags, "--json")
        assert answer.code == code, answer.out
        if code:
            assert answer.json["error"]["code"] == "output-exists"
            assert str(home / "out") in answer.json["error"]["file"]
            assert _everything(home) == before
        else:
            assert _everything(home / "out") == _everything(merged)


def _everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("out", [".", "..", "home"])
def test_overwrite_never_loses_a_home_directory(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OUT=. with --overwrite is refused where anything of the user's lies there."""
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    (home / "work" / "thesis.txt").write_text("mine")
    (tmp_path / "home" / "letter.txt").write_text("mine")
    monkeypatch.chdir(home / "work" if out != "home" else tmp_path)
    before = _everything(tmp_path)
    answer = ask("merge", BASE, ADAPTER, out, "--overwrite", "--json")
    assert answer.code == 5
    assert answer.json["error"]["code"] == "output-exists"
    assert _everything(tmp_path) == before


@pytest.mark.parametrize("where", ["base", "adapter", "base/new", "link", "."])
def test_out_must_lie_apart_from_the_inputs(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, with --overwrite too: the same directory, one inside it, a link to it, one around."""
    pair = write("lora", tmp_path)
    (tmp_path / "link").symlink_to("base")
    monkeypatch.chdir(tmp_path)
    before = _everything(tmp_path)
    error = refused(2, "merge", pair.base, pair.adapter, where, "--overwrite")
    assert error["code"] in {"output-is-input", "output-overlaps-input"}
    assert _everything(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_device_that_is_not_there_is_exit_7(tmp_path: Path) -> None:
    """--device cuda never falls back in silence; auto does."""
    error = refused(7, "merge", BASE, ADAPTER, tmp_path / "out", "--device", "cuda")
    assert (error["code"], error["field"]) == ("device-missing", "--device")
    assert error["hint"] == "--device cpu works anywhere"
    assert not (tmp_path / "out").exists()
    auto = ask("merge", BASE, ADAPTER, tmp_path / "auto", "--device", "auto", "--json")
    assert auto.json["device"] == "cpu"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--threads", "0"),
        ("--threads", "many"),
        ("--weight", "nan"),
        ("--weight", "inf"),
        ("--weight", "one"),
        ("--dtype", "int8"),
        ("--precision", "float16"),
        ("--tie", "maybe"),
        ("--device", "tpu"),
        ("--max-shard-size", "0"),
        ("--max-shard-size", "5 apples"),
        ("--quantized", "some"),
    ],
)
def test_value_that_makes_no_sense_is_exit_2(flag: str, value: str, tmp_path: Path) -> None:
    """One line that names the flag; nothing is begun."""
    answer = ask("merge", BASE, ADAPTER, tmp_path / "out", flag, value)
    assert (answer.code, answer.out) == (2, "")
    first, *_ = answer.err.splitlines()
    assert first.startswith("error: ")
    assert flag in first
    assert names(tmp_path) == set()


ODD = "base_model.model.model.layers.0.self_attn.q_proj.lora_odd.weight"


def test_skipped_and_dropped_are_recorded(tmp_path: Path) -> None:
    """The receipt of a merge that left something out names it."""
    pair = write("lora", tmp_path)
    _spoil(pair.adapter)
    out = tmp_path / "out"
    error = refused(3, "merge", pair.base, pair.adapter, out, "--skip-unmatched")
    assert (error["code"], error["tensor"]) == ("keys-unrecognised", ODD)
    error = refused(4, "merge", pair.base, pair.adapter, out, "--allow-drop", "*.lora_odd*")
    assert error["code"] == "module-not-in-base"
    done("merge", pair.base, pair.adapter, out, "--skip-unmatched", "--allow-drop", "*.lora_odd*")
    decisions = json.loads((out / "adaptool.json").read_text())["decisions"]
    assert ODD in decisions["dropped"]
    assert any("layers.7" in name for name in decisions["skipped"])


def _spoil(adapter: Path) -> None:
    """One module of a layer that the base lacks, and one tensor that nothing can use."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    extra = {
        name.replace("layers.1", "layers.7"): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.1.self_attn.q_proj" in name
    }
    save_file({**tensors, **extra, ODD: torch.ones(3)}, file)


def test_findings_go_to_stderr_and_the_answer_to_stdout(tmp_path: Path) -> None:
    """A script that reads stdout gets one line, a person sees the warning."""
    adapter = tmp_path / "adapter"
    shutil.copytree(ADAPTER, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": -16}))
    answer = done("merge", BASE, adapter, tmp_path / "out")
    assert len(answer.out.splitlines()) == 1
    assert answer.err.startswith("warning[alpha-negative]: ")


def test_umask_is_respected(tmp_path: Path) -> None:
    """Output files are the user's like any other file, not private leftovers of staging."""
    before = os.umask(0o027)
    try:
        done("merge", BASE, ADAPTER, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
