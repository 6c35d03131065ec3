"""`hf://` addresses of which only headers are needed: a few range requests, no weights.

The Hub is the stand-in of tests/hub_stand_in.py, which counts what it sends; the client is the
real one. The large files are sparse: only the server believes in them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import ADAPTER, BASE, run_patched
from hub_sparse import safetensors
from hub_stand_in import Refuse, StandIn, at_hand, environment
from small_pairs import LLAMA, config_of

Adaptool = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"
MEGABYTE = 1_000_000


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passing: Path) -> Iterator[StandIn]:
    """A Hub with the fixture's adapter and base; temporary directories are seen."""
    from huggingface_hub import constants

    del passing
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with StandIn() as server:
        for name, folder in (("me/adapter", ADAPTER), ("me/base", BASE)):
            server.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        at_hand(monkeypatch, server)
        yield server


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _large_adapter() -> dict[str, bytes]:
    """200 MB of PEFT's factors for 64 layers, and a tokenizer of 30 MB."""
    tensors = {}
    for layer in range(64):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = ("F32", (96, 4096))
        tensors[f"{name}.lora_B.weight"] = ("F32", (4096, 96))
    config = config_of(r=96, lora_alpha=192, target_modules=["q_proj"])
    return {
        "adapter_config.json": _json(config),
        WEIGHTS: safetensors(tensors),
        "tokenizer.json": b" " * (30 * MEGABYTE),
    }


def _kohya() -> bytes:
    """200 MB in kohya's layout: what the factors are scaled by lies between them."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    alphas = {}
    for layer in range(12):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            name = f"lora_te_text_model_encoder_layers_{layer}_self_attn_{part}"
            tensors[f"{name}.alpha"] = ("F16", ())
            tensors[f"{name}.lora_down.weight"] = ("F16", (256, 4096))
            tensors[f"{name}.lora_up.weight"] = ("F16", (4096, 256))
            alphas[f"{name}.alpha"] = struct.pack("<e", 64.0)
    return safetensors(tensors, alphas)


def _large_model(shards: int = 6) -> dict[str, bytes]:
    """A llama of 100 MB in each of its shards."""
    weight_map: dict[str, str] = {}
    files = {}
    for layer in range(shards):
        file = f"model-{layer + 1:05d}-of-{shards:05d}.safetensors"
        tensors = {
            f"model.layers.{layer}.self_attn.{name}_proj.weight": ("BF16", (4096, 4096))
            for name in "qko"
        }
        files[file] = safetensors(tensors)
        weight_map |= dict.fromkeys(tensors, file)
    config = {**LLAMA, "hidden_size": 4096, "num_hidden_layers": shards}
    index = {"metadata": {}, "weight_map": weight_map}
    more = {"config.json": _json(config), "model.safetensors.index.json": _json(index)}
    return {**files, **more, "tokenizer.json": b" " * (30 * MEGABYTE)}


def _bnb_model() -> dict[str, bytes]:
    """A 4-bit llama, 8 MB of codes in each weight, its quantization states beside them."""
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4096, 4096]}
    content = _json(state)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    values = {}
    for layer in range(20):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        tensors[name] = ("U8", (4096 * 4096 // 2, 1))
        tensors[f"{name}.absmax"] = ("F32", (4096 * 4096 // 64,))
        tensors[f"{name}.quant_map"] = ("F32", (16,))
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = ("U8", (len(content),))
        values[f"{name}.quant_state.bitsandbytes__nf4"] = content
        values[f"{name}.quant_map"] = struct.pack("<16f", *NF4)
    config = {
        **LLAMA,
        "hidden_size": 4096,
        "num_hidden_layers": 20,
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_use_double_quant": False,
        },
    }
    return {"config.json": _json(config), "model.safetensors": safetensors(tensors, values)}


# bitsandbytes, functional.py, create_normal_map: the sixteen values of nf4.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def _whole(hub: StandIn) -> list[str]:
    """The weights files that were asked for without a range."""
    found = hub.asked("GET", r"/resolve/.*\.(safetensors|st)$")
    return [each.path for each in found if "range" not in each.headers]


def test_inspect_of_a_200_mb_adapter_reads_under_1_mb(adaptool: Adaptool, hub: StandIn) -> None:
    """Its header and its config; the tokenizer beside it is not read either."""
    hub.add("me/large", _large_adapter())
    assert len(hub.repos["me/large"].files[WEIGHTS]) > 200 * MEGABYTE
    found = adaptool("inspect", "hf://me/large")
    assert (found["module_count"], found["ranks"]["max"]) == (64, 96)
    assert found["bytes"] == len(hub.repos["me/large"].files[WEIGHTS])
    assert hub.sent < MEGABYTE
    assert len(hub.log) <= 5
    assert _whole(hub) == []


def test_inspect_of_kohyas_layout_reads_its_scales_alone(adaptool: Adaptool, hub: StandIn) -> None:
    """48 scales of two bytes among 200 MB of factors."""
    hub.add("me/style", {"style.safetensors": _kohya()})
    found = adaptool("inspect", "hf://me/style/style.safetensors")
    assert (found["module_count"], found["scaling"]) == (48, {"min": 0.25, "max": 0.25})
    assert hub.sent < MEGABYTE
    assert _whole(hub) == []


def test_inspect_of_a_sharded_model_reads_under_1_mb(adaptool: Adaptool, hub: StandIn) -> None:
    """One request for each shard of 100 MB, the index and the config."""
    hub.add("me/large", _large_model())
    found = adaptool("inspect", "hf://me/large")
    assert (found["tensor_count"], len(found["shards"])) == (18, 6)
    assert found["bytes"] > 600 * MEGABYTE
    assert hub.sent < MEGABYTE
    assert len(hub.asked("GET", r"/resolve/.*\.safetensors$")) == 6


def test_dry_run_on_a_quantized_base_reads_its_small_values(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """20 states and tables among 160 MB of codes; the base's weights are not downloaded."""
    hub.add("me/packed", _bnb_model())
    tensors = {}
    for layer in range(20):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = ("F32", (1, 4096))
        tensors[f"{name}.lora_B.weight"] = ("F32", (4096, 1))
    config = config_of(r=1, target_modules=["q_proj"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(_json(config))
    (adapter / WEIGHTS).write_bytes(safetensors(tensors)[:])
    found = adaptool("merge", "hf://me/packed", adapter, tmp_path / "out", "--dry-run")
    assert found["tensors"]["touched"] == 20
    assert hub.sent < MEGABYTE
    assert _whole(hub) == []
    assert not (tmp_path / "out").exists()


def test_dry_run_downloads_headers_of_the_base_alone(
    adaptool: Adaptool, hub: StandIn, tmp_path: Path
) -> None:
    """The same plan as from a local copy; the adapter is needed whole."""
    here = adaptool("merge", BASE, ADAPTER, tmp_path / "out", "--dry-run")
    there = adaptool("merge", "hf://me/base", "hf://me/adapter", tmp_path / "out", "--dry-run")
    assert {**there, "seconds": 0} == {**here, "seconds": 0}
    assert [path.rpartition("/")[2] for path in _whole(hub)] == [WEIGHTS]


def test_what_headers_say_is_what_a_copy_says(adaptool: Adaptool, hub: StandIn) -> None:
    """inspect of adapter and model, with a base, and validate for a runtime."""
    for remote, local in (("hf://me/adapter", ADAPTER), ("hf://me/base", BASE)):
        here, there = adaptool("inspect", local), adaptool("inspect", remote)
        assert there.pop("path") == remote
        here.pop("path")
        assert there == here
    here = adaptool("inspect", ADAPTER, "--base", BASE)
    there = adaptool("inspect", "hf://me/adapter", "--base", "hf://me/base")
    assert there["share_of_base"] == here["share_of_base"]
    there = adaptool("validate", "hf://me/adapter", "--base", "hf://me/base", "--target", "vllm")
    here = adaptool("validate", ADAPTER, "--base", BASE, "--target", "vllm")
    assert (there["ok"], there["findings"]) == (here["ok"], here["findings"])
    assert _whole(hub) == []


def test_values_are_read_from_a_whole_copy(adaptool: Adaptool, hub: StandIn) -> None:
    """--values needs every byte, so they come checked."""
    here = adaptool("inspect", ADAPTER, "--values")
    there = adaptool("inspect", "hf://me/adapter", "--values")
    assert there["modules"] == here["modules"]
    assert len(_whole(hub)) == 1


def test_broken_header_is_named_by_its_address(adaptool: Adaptool, hub: StandIn) -> None:
    """No temporary name in errors and findings: adapter, shard, config."""
    good = hub.repos["me/adapter"].files
    hub.add("me/junk", {**good, WEIGHTS: b"\x10" + bytes(7) + b"no JSON, that is" + bytes(64)})
    error = adaptool("inspect", "hf://me/junk", code=3)["error"]
    assert error["file"] == f"hf://me/junk/{WEIGHTS}"
    (finding,) = adaptool("validate", "hf://me/junk@main", code=1)["findings"]
    assert finding["file"] == f"hf://me/junk@main/{WEIGHTS}"
    shard = "model-00002-of-00002.safetensors"
    hub.add("me/broken", {**hub.repos["me/base"].files, shard: bytes(1000)})
    error = adaptool("inspect", "hf://me/broken", code=3)["error"]
    assert (error["file"], error["code"]) == (f"hf://me/broken/{shard}", "header-not-json")
    hub.add("me/unsaid", {WEIGHTS: good[WEIGHTS]})
    said = adaptool("merge", BASE, "hf://me/unsaid", "out", code=3)
    assert said["error"]["file"] == f"hf://me/unsaid/{WEIGHTS}"
    assert "adaptool-" not in json.dumps(said)


def test_document_that_is_none_is_refused_by_its_size(adaptool: Adaptool, hub: StandIn) -> None:
    """A config of 80 MB is not downloaded to find out that it is too large."""
    config = b" " * (80 * MEGABYTE)
    hub.add("me/hostile", {**hub.repos["me/base"].files, "config.json": config})
    error = adaptool("inspect", "hf://me/hostile", code=7)["error"]
    assert (error["code"], error["file"]) == ("json-too-large", "hf://me/hostile/config.json")
    assert hub.sent < MEGABYTE


def test_gguf_is_pulled_whole(adaptool: Adaptool, hub: StandIn, tmp_path: Path) -> None:
    """Its numbers stand before its tensors, as long as they like."""
    adaptool("convert", ADAPTER, tmp_path / "style.gguf", "--to", "gguf", "--base", BASE)
    hub.add("me/packed", {"style.gguf": (tmp_path / "style.gguf").read_bytes()})
    here = adaptool("inspect", tmp_path / "style.gguf", "--base", BASE)
    there = adaptool("inspect", "hf://me/packed/style.gguf", "--base", "hf://me/base")
    assert there.pop("path") == "hf://me/packed/style.gguf"
    here.pop("path")
    assert there == here


def test_parts_come_from_where_the_hub_sends_the_client(adaptool: Adaptool, hub: StandIn) -> None:
    """A redirect to another host: the range goes along, the token does not."""
    with StandIn() as elsewhere:
        hub.cdn = elsewhere
        adaptool("inspect", "hf://me/base")
        assert {each.headers.get("range") for each in elsewhere.log} == {"bytes=0-65535"}
        assert not any("authorization" in each.headers for each in elsewhere.log)
        assert all("authorization" in each.headers for each in hub.log)


def test_refused_part_is_the_hubs_own_error(adaptool: Adaptool, hub: StandIn) -> None:
    """Exit 6, for validate as well: it is no finding about the artifact."""
    for verb in ("inspect", "validate"):
        hub.when("GET", f"/resolve/.*{WEIGHTS}", Refuse(403))
        assert adaptool(verb, "hf://me/adapter", code=6)["error"]["code"] == "authentication"


def test_inspect_of_an_address_does_not_import_torch(hub: StandIn) -> None:
    """The Hub's client is all that it needs."""
    says = "import atexit\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    run = run_patched(says, "inspect", "hf://me/adapter", env=environment(hub))
    assert (run.code, run.err.splitlines()[-1]) == (0, "False"), run.err
