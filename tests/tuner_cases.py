"""An example adapter of every tuner, trained with PEFT on a tiny model and read back through files.

`tests/tuner_examples/<tuner>.py` holds `EXAMPLES`, at least one for each switch of the tuner and
two architectures in all; laws and golden tests take them from here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any
from unittest import mock

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PeftType, get_peft_model
from peft.tuners.frod.layer import Linear as FrodLinear
from peft.utils.other import transpose
from torch import nn

from adaptool.engine.write import write_model
from adaptool.layouts import decode
from adaptool.model.options import Machine, MergeOptions
from adaptool.model.plan import Plan
from adaptool.ops.merge import Part, plan_merge
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import open_checkpoint
from adaptool.tuners import tuners
from golden_cases import Tensors, load, quietly, save_base, tensors_of
from tiny_models import build

FOLDER = Path(__file__).parent / "tuner_examples"


@dataclass(frozen=True, eq=False)
class Example:
    """One adapter: PEFT's options for it on one of `tiny_models`.

    `note` names the switch. `adjust` changes the trained model before it is saved, `edit` the
    adapter's folder afterwards (older layouts of the file; with `older` it is one that PEFT no
    longer reads, and the folder before the edit is the reference); `keep`: substrings of
    parameters that are trained by small steps from where they began, because noise would make no
    sense there.
    `truth`: "merge" compares with PEFT's merge, "forward" with what its adapted layers compute,
    where its merge is another thing; "elsewhere" where PEFT has no such tuner. `loose`: PEFT
    computes in float32 on the way, so that its float64 result has float32's digits only.
    `peft_type` where it is not the tuner's own.
    """

    model: str
    options: Mapping[str, Any]
    note: str = ""
    adjust: Callable[[PeftModel], None] | None = None
    edit: Callable[[Path], None] | None = None
    keep: tuple[str, ...] = ()
    truth: str = "merge"
    loose: bool = False
    peft_type: str = ""
    older: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """An example and the tuner it is of."""

    tuner: str
    example: Example
    place: int

    @property
    def name(self) -> str:
        """As pytest shows it."""
        return " ".join(filter(None, (self.tuner, self.example.model, self.example.note)))


@dataclass(frozen=True)
class Pair:
    """A case on disk."""

    case: Case
    base: Path
    adapter: Path

    @property
    def reference(self) -> Path:
        """The adapter as PEFT reads it."""
        return self.base.parent / "current" if self.case.example.older else self.adapter

    def merged(
        self,
        out: Path,
        *,
        threads: int = 1,
        tile_elements: int = 0,
        weight: float = 1.0,
        **given: Any,
    ) -> Tensors:
        """Merge into `out`; every tensor of what was written."""
        options = MergeOptions().given(**given)
        with open_checkpoint(self.base) as base, open_adapter(self.adapter) as files:
            plan = plan_merge(base, [Part(files, decode(files), weight)], options)
            more = {"tile_elements": tile_elements} if tile_elements else {}
            write_model(plan, out, "merge", Machine("cpu", threads), checksum=False, **more)
        return tensors_of(out)

    def plan(self, check: Callable[[Plan], None]) -> None:
        """Hand the plan of the merge to `check` while the files are open."""
        with open_checkpoint(self.base) as base, open_adapter(self.adapter) as files:
            check(plan_merge(base, [Part(files, decode(files), 1.0)], MergeOptions()))


def examples(tuner: str) -> tuple[Example, ...]:
    """The tuner's examples; () where nobody wrote any."""
    if not (FOLDER / f"{tuner}.py").exists():
        return ()
    found: tuple[Example, ...] = importlib.import_module(f"tuner_examples.{tuner}").EXAMPLES
    return found


@cache
def cases() -> tuple[Case, ...]:
    """Every example of every tuner."""
    return tuple(
        Case(name, example, place)
        for name in tuners()
        for place, example in enumerate(examples(name))
    )


def every_case(*, fast: int = 1, elsewhere: bool = True) -> pytest.MarkDecorator:
    """Parametrizes `case`: the first `fast` examples of each tuner always, the others as slow.

    `elsewhere`: also those that PEFT has no tuner for.
    """
    chosen = [case for case in cases() if elsewhere or case.example.truth != "elsewhere"]
    marks = {case: () if case.place < fast else (pytest.mark.slow,) for case in chosen}
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.name, marks=marks[case]) for case in chosen]
    )


def strangers() -> set[str]:
    """Files of examples whose tuner does not exist."""
    return {entry.name for entry in pkgutil.iter_modules([str(FOLDER)])} - set(tuners())


def make(case: Case, root: Path, dtype: torch.dtype = torch.float32) -> Pair:
    """Write the case below `root`; once per session."""
    return _made(case, root, dtype)


@cache
def _made(case: Case, root: Path, dtype: torch.dtype) -> Pair:
    example = case.example
    kind = "" if dtype is torch.float32 else f"-{dtype}"
    where = root / f"tuner-{case.tuner}-{case.place}{kind}"
    base, adapter = where / "base", where / "adapter"
    with quietly(), mended():
        save_base(build(example.model, dtype=dtype), base)
        tuned = get_peft_model(load(example.model, base), _config(case))
        train(tuned, example.keep)
        if example.adjust is not None:
            example.adjust(tuned)
        tuned.save_pretrained(adapter)
    if example.older:
        copytree(adapter, where / "current")
    if example.edit is not None:
        example.edit(adapter)
    return Pair(case, base, adapter)


def _config(case: Case) -> Any:
    kind = case.example.peft_type or tuners()[case.tuner].DECLARATION.peft_type
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**case.example.options)


def train(model: nn.Module, keep: tuple[str, ...] = (), seed: int = 7) -> None:
    """Random steps in place of training: every trainable tensor moves, none is zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            step = torch.randn_like(parameter)
            if not parameter.requires_grad:
                continue
            if any(part in name for part in keep):
                parameter.add_(0.05 * step)
            else:
                parameter.copy_(0.3 * step)


def peft_merged(pair: Pair, dtype: torch.dtype | None = None) -> Tensors:
    """What PEFT's merge makes of the files, under checkpoint names; exact in float64."""
    with quietly(), mended():
        model = load(pair.case.example.model, pair.base, dtype)
        tuned = PeftModel.from_pretrained(
            model, pair.reference, autocast_adapter_dtype=dtype is None
        ).eval()
        if dtype is not None:
            tuned = tuned.to(dtype)
        merged = tuned.merge_and_unload()
    return _as_saved(merged, pair)


@contextmanager
def mended() -> Iterator[None]:
    """What PEFT fails without.

    torch 2.13 cannot make the product of its strided factors of an effective LoKr kernel, and
    BOFT's butterflies need a CUDA extension. FRoD makes its U, when it loads, with a basis made
    anew, not with the one in the file; where eigenvalues coincide that is another one.
    """
    kron = torch.kron

    def of_copies(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        parts = (part.flatten().clone().view(part.shape) for part in (left, right))
        return kron(*parts)

    def of_its_basis(layer: FrodLinear, adapter: str) -> torch.Tensor:
        weight = transpose(layer.get_base_layer().weight, layer.fan_in_fan_out)
        basis = layer.frod_V[adapter]
        layer.frod_U[adapter], _ = layer._calculate_frod_u_and_lambda(basis, weight)  # noqa: SLF001
        return frod_delta(layer, adapter)

    frod_delta = FrodLinear.get_delta_weight
    with (
        mock.patch("torch.kron", of_copies),
        mock.patch("peft.tuners.boft.layer._FBD_CUDA", BlockDiagonals()),
        mock.patch.object(FrodLinear, "get_delta_weight", of_its_basis),
    ):
        yield


class BlockDiagonals:
    """PEFT's extension, in place of the one that would be compiled for a device."""

    def forward(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        """(factors, n b, n b) of (factors, n, b, b), in a list."""
        return [torch.stack([torch.block_diag(*entry) for entry in blocks])]


def _as_saved(model: nn.Module, pair: Pair) -> Tensors:
    where = pair.base.parent / "peft"
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(where)
        return tensors_of(where)
    return {name: value.clone() for name, value in model.state_dict().items()}
