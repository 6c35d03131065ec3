"""Deltas that depend on more of the base than the tensor they change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from adaptool.errors import MismatchError
from adaptool.model.adapter import Adapter, Delta, Form, Terms
from adaptool.ops.contributions import Contribution, Permissions
from adaptool.ops.drafts import Draft, Drafts
from memory_source import MemorySource
from plan_rows import placed

SOURCE = MemorySource(b"", "base.safetensors")
FACTORS = MemorySource(b"", "adapter.safetensors")


def _drafts(shapes: Mapping[str, tuple[int, ...]]) -> Drafts:
    refs = {name: placed(SOURCE, "BF16", shape, name=name) for name, shape in shapes.items()}
    return {name: Draft(name, ref, "base.safetensors", ref.dtype) for name, ref in refs.items()}


def _shift(parameter: str, **fields: Any) -> Delta:
    role = placed(FACTORS, "F32", (5,), name=f"{parameter}.b")
    terms = Terms(Form.VECTOR, 5, 1, 1.0)
    return Delta("m", parameter, "shift", {"difference": role}, terms, **fields)


def _added(drafts: Drafts, *deltas: Delta) -> None:
    refs = {ref.name: ref for delta in deltas for ref in delta.roles.values()}
    adapter = Adapter("adapter", "peft", {}, deltas, (), (), refs, ())
    permissions = Permissions(skip_unmatched=False, allow_drop=())
    Contribution(0, adapter, 1.0, drafts, config=None, permissions=permissions).add()


def test_a_role_may_be_a_tensor_of_the_base() -> None:
    """A bias that changes with the weight gets the weight, as the base has it."""
    drafts = _drafts({"m.weight": (5, 4), "m.bias": (5,)})
    _added(drafts, _shift("m.bias", reads={"W": "m.weight"}))
    (piece,) = drafts["m.bias"].pieces
    assert piece.delta.roles["W"] is drafts["m.weight"].source
    assert not drafts["m.weight"].pieces


def test_a_tensor_that_the_base_does_not_have_whole_cannot_be_read() -> None:
    """Nothing is guessed from a fused one."""
    drafts = _drafts({"m.qkv_proj.weight": (15, 4), "m.q_proj.bias": (5,)})
    with pytest.raises(MismatchError, match=r"depends on m\.q_proj\.weight"):
        _added(drafts, _shift("m.q_proj.bias", reads={"W": "m.q_proj.weight"}))


def test_a_bias_that_the_base_lacks_may_be_optional() -> None:
    """IA3 scales a bias where there is one; another module's is not taken for it."""
    drafts = _drafts({"m.weight": (5, 4), "x.y.other.m.bias": (5,)})
    _added(drafts, _shift("deep.m.bias", optional=True))
    assert not any(draft.pieces for draft in drafts.values())
    with pytest.raises(MismatchError, match="shifts a bias"):
        _added(_drafts({"m.weight": (5, 4)}), _shift("m.bias"))
