"""Sizes that no tensor of the adapter tells are the base's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adaptool.errors import MismatchError
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.names.renames import Part, Placement
from adaptool.names.resolver import Fused, FusedPart, How, Resolution
from adaptool.ops.sizes import completed
from adaptool.ops.targets import Base, views

PLAIN = Resolution(How.EXACT, (Placement("w"),))


def _delta(out: int, inner: int, form: Form = Form.LINEAR) -> Delta:
    return Delta("m", "m.weight", "x", {}, Terms(form, out, inner, 1.0))


def _base(*shape: int, kind: str = "llama") -> Base:
    return Base({"w": shape}, (kind,), heads=2)


def _sizes(delta: Delta, found: Resolution, base: Base) -> tuple[int, int]:
    """The sizes, which must then be placed without a word."""
    made = completed(delta, found, base, None)
    assert views(made, found, base, None)
    return made.terms.out, made.terms.inner


@pytest.mark.parametrize(
    ("known", "shape", "kind", "expected"),
    [
        ((6, 0), (6, 4), "llama", (6, 4)),
        ((0, 4), (6, 4), "llama", (6, 4)),
        ((6, 0), (4, 6), "gpt2", (6, 4)),
        ((6, 0), (4, 6), "llama", (6, 4)),
        ((0, 0), (6, 4), "llama", (6, 4)),
        ((0, 0), (4, 6), "gpt2", (6, 4)),
        ((6, 0), (6, 6), "gpt2", (6, 6)),
    ],
)
def test_the_other_side_is_the_bases(
    known: tuple[int, int], shape: tuple[int, int], kind: str, expected: tuple[int, int]
) -> None:
    """A known side finds its axis; where none is known the family's layout decides."""
    assert _sizes(_delta(*known), PLAIN, _base(*shape, kind=kind)) == expected


def test_a_convolution_gets_its_kernel() -> None:
    """Inputs are counted with the kernel's axes."""
    made = completed(_delta(6, 0, Form.CONVOLUTION), PLAIN, _base(6, 4, 3, 2), None)
    assert (made.terms.inner, made.terms.kernel) == (24, (3, 2))


def test_an_embedding_is_stored_transposed() -> None:
    """(vocab, dim) in the file, dim outputs."""
    assert _sizes(_delta(0, 0, Form.EMBEDDING), PLAIN, _base(9, 4)) == (4, 9)


@pytest.mark.parametrize(
    ("part", "known", "expected"),
    [
        (FusedPart(0, 3, Fused.CONCATENATED), (6, 0), (6, 4)),
        (FusedPart(1, 2, Fused.CONCATENATED), (0, 4), (5, 4)),
        (FusedPart(2, 5, Fused.PER_HEAD), (0, 0), (2, 4)),
    ],
)
def test_a_member_of_a_fused_tensor_has_its_share(
    part: FusedPart, known: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Halves, and heads, are equal; q, k and v need not be."""
    found = Resolution(How.FUSION, (Placement("w"),), fused=part)
    assert _sizes(_delta(*known), found, _base(10, 4)) == expected


@pytest.mark.parametrize(("index", "out"), [(0, 8), (1, 2), (2, 2)])
def test_heads_tell_the_shares_of_q_k_and_v(index: int, out: int) -> None:
    """Four heads of q for each of k and v."""
    part = FusedPart(index, 3, Fused.CONCATENATED)
    found = Resolution(How.FUSION, (Placement("w"),), fused=part)
    base = replace(_base(12, 4), heads=4, shared_heads=1)
    assert _sizes(_delta(0, 4), found, base) == (out, 4)


def test_q_of_unknown_size_is_refused() -> None:
    """k and v may be smaller, and nothing says how much."""
    part = FusedPart(0, 3, Fused.CONCATENATED)
    found = Resolution(How.FUSION, (Placement("w"),), fused=part)
    with pytest.raises(MismatchError, match="stands in no tensor"):
        completed(_delta(0, 4), found, _base(12, 4), None)


def test_a_fused_delta_is_as_large_as_its_members() -> None:
    """q, k and v of unlike sizes in the base."""
    names = ("q", "k", "v")
    base = Base({"q": (6, 4), "k": (3, 4), "v": (3, 4)}, ("llama",))
    found = Resolution(How.FUSION, tuple(map(Placement, names)), members=True)
    assert _sizes(_delta(0, 4), found, base) == (12, 4)


def test_pieces_of_a_parameter_are_counted_together() -> None:
    """Two tensors of unlike heights make one parameter."""
    placements = tuple(
        Placement(name, of_parameter=(Part(0, place, 2),)) for place, name in enumerate("ab")
    )
    base = Base({"a": (6, 4), "b": (2, 4)}, ("llama",))
    assert _sizes(_delta(0, 4), Resolution(How.RENAME, placements), base) == (8, 4)


def test_an_expert_of_a_stack_has_one_matrix() -> None:
    """Its slot of (experts, out, in), half of it where gate and up are fused."""
    parts = (Part(0, 1, 0, dropped=True), Part(1, 0, 2))
    found = Resolution(How.STACK, (Placement("w", of_tensor=parts),))
    assert _sizes(_delta(0, 4), found, _base(3, 10, 4)) == (5, 4)


def test_a_side_that_fits_no_axis_is_refused_with_the_numbers() -> None:
    """An adapter of another size of the model."""
    with pytest.raises(MismatchError, match=r"8 outputs, w is \[6, 4\]"):
        completed(_delta(8, 0), PLAIN, _base(6, 4), None)
