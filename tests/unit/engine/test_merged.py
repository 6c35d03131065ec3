"""A parameter under its deltas as a source of float64 bytes, against products in float64."""

from __future__ import annotations

import pytest
import torch

import golden_cases
from adaptool.engine.algebra import FactorAlgebra
from adaptool.engine.extraction import DifferenceExtractor
from adaptool.engine.merged import MergedWeights
from adaptool.layouts import decode
from adaptool.model.options import Machine
from adaptool.ops.based import changes
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.tensors import TensorRef
from golden_cases import BY_NAME

CPU = Machine(device="cpu", threads=1)
# Whole, transposed, experts stacked in one tensor or each in its own, two adapters' worth of views.
NAMES = ("every_linear", "gpt2", "mixtral_experts", "gpt_oss_experts", "convolutions", "embedding")


def _read(ref: TensorRef, start: int, stop: int) -> torch.Tensor:
    raw = torch.empty(stop - start, dtype=torch.uint8)
    ref.source.read_into(ref.offset + start, raw.numpy().data)
    return raw


def _values(ref: TensorRef) -> torch.Tensor:
    raw = _read(ref, 0, ref.length)
    dtype = torch.float64 if ref.dtype.name == "F64" else torch.float32
    return raw.view(dtype).double()


@pytest.mark.parametrize("name", NAMES)
def test_the_difference_is_the_scaled_product(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """f(W) - W of a LoRA, matrix by matrix, wherever the base keeps them."""
    made = golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp())
    algebra, weights = FactorAlgebra(CPU), MergedWeights(CPU)
    with open_adapter(made.adapter) as files, open_checkpoint(made.base) as base:
        adapter = decode(files)
        parameters = [delta.parameter for delta in adapter.deltas]
        found = changes(base, [(adapter, -0.5)], parameters)
        for delta in adapter.deltas:
            difference = weights.difference(found[delta.parameter])
            ours = _values(difference.tuned) - _values(difference.base)
            products = [
                -0.5 * delta.terms.scaling * left @ right for left, right in algebra.products(delta)
            ]
            matrices = [one.T if difference.transposed else one for one in products]
            wanted = torch.stack([one.contiguous() for one in matrices]).reshape(-1)
            assert (ours - wanted).norm() <= 1e-12 * wanted.norm(), delta.parameter
            factors = DifferenceExtractor(CPU).factors(difference, delta.terms.rank or 1)
            assert {role: ref.elements for role, ref in factors.items()} == {
                role: ref.elements for role, ref in delta.roles.items() if role in factors
            }


@pytest.mark.parametrize("name", ["dora", "dora_gpt2"])
def test_any_bytes_are_those_of_the_whole(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Reads that begin and end inside of rows and elements; and again after it was forgotten."""
    made = golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp())
    with open_adapter(made.adapter) as files, open_checkpoint(made.base) as base:
        adapter = decode(files)
        parameter = adapter.deltas[0].parameter
        (change,) = changes(base, [(adapter, 1.0)], [parameter]).values()
        ref = MergedWeights(CPU).difference(change).tuned
        whole = _read(ref, 0, ref.length)
        for start, stop in ((0, 8), (3, 1001), (ref.length - 9, ref.length), (256, 512)):
            assert torch.equal(_read(ref, start, stop), whole[start:stop])
        ref.source.close()
        assert torch.equal(_read(ref, 5, 700), whole[5:700])


def test_its_parents_are_the_bases_tensor_and_the_factors(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """So that a file that changes meanwhile is noticed."""
    made = golden_cases.make(BY_NAME["dora"], tmp_path_factory.getbasetemp())
    with open_adapter(made.adapter) as files, open_checkpoint(made.base) as base:
        adapter = decode(files)
        delta = adapter.deltas[0]
        (change,) = changes(base, [(adapter, 1.0)], [delta.parameter]).values()
        source = MergedWeights(CPU).difference(change).tuned.source
        names = {parent.name for parent in getattr(source, "parents", ())}
        assert {ref.name for ref in delta.roles.values()} < names
        assert len(names) == len(delta.roles) + 1
