"""What is written for PEFT computes in PEFT what the adapter did: its forward is the judge."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model

import adaptool
from adaptool.errors import MismatchError
from golden_cases import BY_NAME, CASES, Case, Made, load, make, quietly, save_base, train
from tiny_models import answer, build

Write = Callable[[Made, Path], object]

WAYS: Mapping[str, Write] = {
    "resize": lambda made, out: adaptool.resize(made.adapter, out, error=0.0, dtype="float32"),
    "halves": lambda made, out: adaptool.combine(
        made.adapter, made.adapter, weights=(0.3, 0.7), out=out
    ),
    "convert": lambda made, out: adaptool.convert(made.adapter, out, to="peft", base=made.base),
    "bake": lambda made, out: adaptool.convert(made.adapter, out, to="peft", bake_scale=True),
    "lora": lambda made, out: adaptool.convert(made.adapter, out, to="lora"),
}
# The ways that need factors whose product is the whole delta.
FACTORED = {"resize", "halves", "lora"}
Q_V = ["q_proj", "v_proj"]


def _limited(name: str, **options: Any) -> Case:
    return Case(name, "llama", {"r": 4, "lora_alpha": 6, **options})


SELECTED = (
    _limited("one_layer", target_modules=Q_V, layers_to_transform=[1]),
    _limited("layer_of", target_modules=Q_V, layers_to_transform=1, layers_pattern="layers"),
    _limited("excluded", target_modules=Q_V, exclude_modules=r".*layers\.0.*q_proj"),
    _limited("excluded_names", target_modules="all-linear", exclude_modules=["up_proj", "lm_head"]),
    _limited("saved_beside", target_modules=Q_V, modules_to_save=["norm", "lm_head"]),
)
INITS = (
    _limited("pissa", target_modules=Q_V, init_lora_weights="pissa"),
    _limited("kasa", target_modules=Q_V, kasa_config=peft.KasaConfig()),
    _limited("velora", target_modules=Q_V, velora_config=peft.VeloraConfig()),
    _limited("monteclora", target_modules=Q_V, monteclora_config=peft.MontecloraConfig()),
)
UP_AND_Q = _limited("up_and_q", target_modules=["up_proj", "q_proj"])
EVERY = (*(case for case in CASES if case.dtype is torch.float32), *SELECTED, *INITS)


def _forward(case: Case, base: Path, adapter: Path) -> torch.Tensor:
    """The answer of the adapted model, loaded from the files; a missing key is an error."""
    more = {} if case.labels is None else {"num_labels": case.labels}
    model = load(case.trained_on or case.model, base, **more)
    if case.vocabulary is not None:
        with quietly():
            model.resize_token_embeddings(case.vocabulary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        adapted = PeftModel.from_pretrained(model, adapter)
        return answer(adapted.eval(), case.trained_on or case.model)


def _check(case: Case, way: str, root: Path, out: Path) -> None:
    made = make(case, root)
    if not _writes(way, made, out):
        return
    found = _forward(case, made.base, out)
    scale = made.truth.abs().max()
    assert (found - made.truth).abs().max() <= 1e-4 * scale


def _writes(way: str, made: Made, out: Path) -> bool:
    """Whether there is a result; a delta that is no product may be refused where one is needed."""
    try:
        WAYS[way](made, out)
    except MismatchError as error:
        if error.code in {"not-low-rank", "init-changed-base", "unsupported"} and way in FACTORED:
            return False
        raise
    return True


# One of each mechanism: shared names of attention, patterns, limits, token rows, stacks, DoRA.
FAST = (
    ("attention", "halves"),
    ("patterns_rslora", "bake"),
    ("one_layer", "halves"),
    ("excluded", "convert"),
    ("saved_beside", "resize"),
    ("token_rows", "convert"),
    ("mixtral_gate_up", "halves"),
    ("dora", "bake"),
    ("kasa", "bake"),
)
BY_ANY_NAME = {**BY_NAME, **{case.name: case for case in (*SELECTED, *INITS)}}


@pytest.mark.parametrize(("name", "way"), FAST)
def test_written_adapter_computes_the_same_in_peft(
    name: str, way: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No key is missed, and the forward is that of the adapter that was read."""
    _check(BY_ANY_NAME[name], way, tmp_path_factory.getbasetemp(), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_every_option_computes_the_same_in_peft(
    case: Case, way: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over every option of PEFT that has a case."""
    _check(case, way, tmp_path_factory.getbasetemp(), tmp_path / "out")


def _both(base: Path, adapters: tuple[Path, Path]) -> torch.Tensor:
    """The answer of PEFT with both adapters at once."""
    with quietly():
        model = PeftModel.from_pretrained(load("llama", base), adapters[0], adapter_name="a")
        model.load_adapter(adapters[1], adapter_name="b")
        model.base_model.set_adapter(["a", "b"])
        return answer(model.eval(), "llama")


@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned"])
@pytest.mark.parametrize("name", ["one_layer", "layer_of", "excluded", "excluded_names"])
def test_limits_of_one_adapter_do_not_hide_what_another_trained(
    name: str, turned: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """exclude_modules, layers_to_transform and layers_pattern are of the config they stand in."""
    root = tmp_path_factory.getbasetemp()
    limited = make(BY_ANY_NAME[name], root)
    both = (limited.adapter, make(UP_AND_Q, root).adapter)
    adaptool.combine(*(both[::-1] if turned else both), out=tmp_path / "out")
    found = _forward(UP_AND_Q, limited.base, tmp_path / "out")
    assert torch.allclose(found, _both(limited.base, both), atol=1e-4)


@pytest.mark.parametrize("based", [False, True], ids=["alone", "base"])
def test_layers_that_an_adapter_leaves_alone_stay_so_by_way_of_mlx(
    based: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Names are made there for what the file holds, and PEFT misses no key of another layer."""
    made = make(BY_ANY_NAME["one_layer"], tmp_path_factory.getbasetemp())
    base = {"base": made.base} if based else {}
    adaptool.convert(made.adapter, tmp_path / "mlx", to="mlx", **base)
    adaptool.convert(tmp_path / "mlx", tmp_path / "out", to="peft", **base)
    found = _forward(made.case, made.base, tmp_path / "out")
    assert torch.allclose(found, made.truth, atol=1e-4)


@pytest.mark.parametrize("alpha", [4, 6])
def test_scale_of_olora_is_baked_only_where_it_is_one(
    alpha: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """OLoRA's scale also multiplies what it took out of the base, so no factor can take it."""
    options = {"r": 4, "lora_alpha": alpha, "target_modules": Q_V, "init_lora_weights": "olora"}
    case = Case(f"olora_{alpha}", "llama", options)
    made = make(case, tmp_path_factory.getbasetemp())
    if alpha != 4:
        with pytest.raises(MismatchError, match=r"OLoRA's scale, 1\.5"):
            WAYS["bake"](made, tmp_path / "out")
        return
    WAYS["bake"](made, tmp_path / "out")
    assert torch.allclose(_forward(case, made.base, tmp_path / "out"), made.truth, atol=1e-5)


@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig], ids=["loha", "lokr"])
def test_scale_of_a_hadamard_or_kronecker_product_is_baked(kind: Any, tmp_path: Path) -> None:
    """alpha becomes r in every module, and one factor takes the rest."""
    config = kind(
        r=3, alpha=7, target_modules=Q_V, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}
    )
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    with quietly():
        save_base(build("llama"), base)
        tuned = get_peft_model(load("llama", base), config)
        train(tuned)
        tuned.save_pretrained(adapter)
    adaptool.convert(adapter, out, to="peft", bake_scale=True)
    case = Case(kind.__name__, "llama", {})
    assert torch.allclose(_forward(case, base, out), _forward(case, base, adapter), atol=1e-5)
    written = peft.PeftConfig.from_pretrained(out)
    assert written.alpha == written.r
    assert written.alpha_pattern == written.rank_pattern


def _biased_and_not(model: str, root: Path, targets: tuple[str, str]) -> tuple[Path, Path, Path]:
    """A base, an adapter with biases beside its factors, and one without."""
    base = root / "base"
    with quietly():
        save_base(build(model), base)
        for name, biased in zip(targets, (True, False), strict=True):
            config = LoraConfig(r=2, lora_alpha=3, target_modules=[name], lora_bias=biased)
            tuned = get_peft_model(load(model, base), config)
            train(tuned, seed=len(name))
            tuned.save_pretrained(root / name)
    return base, root / targets[0], root / targets[1]


def test_factors_without_a_bias_get_one_of_zero_beside_others(tmp_path: Path) -> None:
    """PEFT's lora_bias is for all modules of an adapter or none."""
    base, *both = _biased_and_not("opt", tmp_path, ("q_proj", "v_proj"))
    adaptool.combine(*both, out=tmp_path / "out", base=base)
    with quietly():
        model = PeftModel.from_pretrained(load("opt", base), both[0], adapter_name="a")
        model.load_adapter(both[1], adapter_name="b")
        model.base_model.set_adapter(["a", "b"])
        wanted = answer(model.eval(), "opt")
    found = _forward(Case("biased", "opt", {}), base, tmp_path / "out")
    assert torch.allclose(found, wanted, atol=1e-4)


def test_bias_beside_factors_of_a_layer_without_one_is_refused(tmp_path: Path) -> None:
    """PEFT stops at such a layer; the base tells which those are."""
    base, *both = _biased_and_not("qwen2", tmp_path, ("q_proj", "o_proj"))
    with pytest.raises(MismatchError, match=r"PEFT 0\.21\.2 cannot load this: .*no bias"):
        adaptool.combine(*both, out=tmp_path / "out", base=base)
