"""The factors of LoRA and its relatives: what stands in a file, and the product they make.

A is (r, in), B is (out, r); for a convolution A is (r, in, *k) and B (out, r, 1, ...); for an
embedding (vocab, dim) A is (r, vocab), B (dim, r) and the product is transposed. Stacked experts
(PEFT's `target_parameters`) keep A as (E r, in), expert-major, and B as (out, r E), rank-major, or
(out, E r), expert-major, where Unsloth trained them.
BD-LoRA (PEFT's `use_bdlora`) stores one factor as blocks that stand on a diagonal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.tuner import Effect
from adaptool.model.view import View
from adaptool.tuners.products import LowRankUpdate, oriented_pair, product_update
from adaptool.tuners.scaling import alpha_of, lora_scaling, rank_of

if TYPE_CHECKING:
    import torch

KEYS: Mapping[str, str] = MappingProxyType(
    {
        "lora_A.weight": "A",
        "lora_B.weight": "B",
        "lora_embedding_A": "embedding_A",
        "lora_embedding_B": "embedding_B",
        "lora_B.bias": "difference",
    }
)
"""PEFT key ending -> role."""
PROPORTIONAL = ("B", "embedding_B")
"""The factor that a scale is multiplied into."""


def effects(terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Effect, ...]:
    """The weight's update, and with `lora_bias` the shift of the bias at the same scale."""
    bias = frozenset({"difference"})
    found = Effect("weight", frozenset(shapes) - bias, terms)
    if "difference" not in shapes:
        return (found,)
    shift = Terms(Form.VECTOR, out=shapes["difference"][0], inner=1, scaling=terms.scaling)
    return found, Effect("bias", bias, shift, tuner="shift")


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and shapes of one module; `module` is what rank and alpha patterns match.

    InputError: a factor is missing, the factors' ranks differ, or config and tensors disagree.
    """
    if "embedding_A" in shapes or "embedding_B" in shapes:
        return _embedding_terms(config, module, shapes)
    a, b = _pair(shapes, "A", "B", module)
    if len(a) != len(b) or len(a) < 2:
        message = f"lora_A {list(a)} and lora_B {list(b)} are no pair of factors"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    rank = rank_of(config, module)
    by_name = len(a) == 2 and _is_parameter(config, module)
    if by_name and rank is not None and a[0] == b[1] and a[0] != rank and not a[0] % rank:
        return _stacked_terms(config, module, a, b, rank)
    blocks_a, blocks_b = _blocks(config, module)
    found = a[0] if not blocks_b else b[1] * blocks_b
    grouped = len(a) > 2 and a[0] != b[1]
    if a[0] != found or (a[0] != b[1] and not blocks_b and not grouped):
        _refuse_ranks(a, b, module)
    if grouped and a[0] % b[1]:
        _refuse_ranks(a, b, module)
    scaling = lora_scaling(config, module, a[0])
    inner = a[1] * (blocks_a or 1)
    kernel = a[2:]
    for size in kernel:
        inner *= size
    switches = {
        "blocks_a": blocks_a,
        "blocks_b": blocks_b,
        "groups": a[0] // b[1] if grouped else 0,
        "parameter": by_name,
    }
    return Terms(
        form=Form.CONVOLUTION if kernel else Form.LINEAR,
        out=b[0],
        inner=inner,
        scaling=scaling,
        rank=a[0],
        alpha=alpha_of(config, module),
        kernel=kernel,
        conventions={name: value for name, value in switches.items() if value},
    )


def _pair(
    shapes: Mapping[str, tuple[int, ...]], first: str, second: str, module: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for here, there in ((first, second), (second, first)):
        if here not in shapes:
            message = f"lora_{there} has no lora_{here} beside it"
            hint = "the file is incomplete: save or download the adapter again"
            raise InputError(message, code=Code.FACTOR_MISSING, tensor=module, hint=hint)
    return shapes[first], shapes[second]


def _embedding_terms(
    config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]
) -> Terms:
    a, b = _pair(shapes, "embedding_A", "embedding_B", module)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        _refuse_ranks(a, b, module)
    return Terms(
        form=Form.EMBEDDING,
        out=b[0],
        inner=a[1],
        scaling=lora_scaling(config, module, a[0]),
        rank=a[0],
        alpha=alpha_of(config, module),
    )


def _is_parameter(config: Mapping[str, Any], module: str) -> bool:
    """Whether `module` is the full name of a parameter that the config targets by name."""
    targets = config.get("target_parameters") or ()
    return any(f".{module}".endswith(f".{target}") for target in targets)


def _stacked_terms(
    config: Mapping[str, Any], module: str, a: tuple[int, ...], b: tuple[int, ...], rank: int
) -> Terms:
    """Terms of stacked experts, where A holds several times the configured rank."""
    axes = _axes(config.get("peft_version"))
    return Terms(
        form=Form.EXPERTS,
        out=b[0],
        inner=a[1],
        scaling=lora_scaling(config, module, rank),
        rank=rank,
        alpha=alpha_of(config, module),
        experts=a[0] // rank,
        conventions={"axes": axes} if axes else {},
    )


def _axes(version: object) -> str | None:
    """How the PEFT that trained it read the axes of a stack; None: as 0.19.1 and later do.

    0.17 and 0.18 took every stack for (E, in, out), 0.19.0 mixed the two kinds up (peft 3165).
    Shapes tell as well, but for square experts. 0.17 did not record its version.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version) if isinstance(version, str) else None
    release = tuple(map(int, found.groups())) if found else (0, 17, 0)
    if release < (0, 19, 0):
        return "in-out"
    return "inverted" if release == (0, 19, 0) else None


def _blocks(config: Mapping[str, Any], module: str) -> tuple[int, int]:
    """BD-LoRA's number of blocks of A and of B, 0 where the factor is whole."""
    switch = config.get("use_bdlora")
    if not isinstance(switch, Mapping):
        return 0, 0
    name = module.rpartition(".")[2]
    count = switch.get("nblocks", 1)
    if type(count) is not int or count < 1:
        message = f"nblocks is {count!r}, must be a whole number of at least 1"
        raise InputError(message, code=Code.FIELD_VALUE, field="use_bdlora")
    in_a = any(pattern in name for pattern in switch.get("target_modules_bd_a") or ())
    in_b = any(pattern in name for pattern in switch.get("target_modules_bd_b") or ())
    return (count if in_a else 0), (count if in_b else 0)


def _refuse_ranks(a: tuple[int, ...], b: tuple[int, ...], module: str) -> None:
    message = f"lora_A {list(a)} has rank {a[0]}, lora_B {list(b)} has rank {b[1]}"
    looks = len(a) == len(b) == 2 and (a[1] == b[1] or a[0] == b[0])
    hint = "a factor looks transposed" if looks else "the factors come from different adapters"
    raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, tensor=module, hint=hint)


def low_rank_update(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View, weight: float, exact: bool
) -> LowRankUpdate:
    """The plain additive update `weight * s * B A` under `view`."""
    pair = product_factors(factors, terms, view.expert)
    return product_update(pair, view, terms.scaling * weight, exact=exact)


def oriented(
    factors: Mapping[str, torch.Tensor], terms: Terms, view: View
) -> tuple[torch.Tensor, torch.Tensor]:
    """left (rows, r) and right (r, columns) whose product is the unscaled delta under `view`."""
    return oriented_pair(product_factors(factors, terms, view.expert), view)


def product_factors(
    factors: Mapping[str, torch.Tensor], terms: Terms, expert: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """B (out, r) and A (r, in * kernel) as matrices, blocks and stacks resolved."""
    if terms.form is Form.EMBEDDING:
        return factors["embedding_B"], factors["embedding_A"]
    if terms.conventions.get("groups"):
        message = "the delta of a grouped convolution crosses its groups"
        raise InputError(message, code=Code.UNSUPPORTED)
    a, b = factors["A"], factors["B"]
    if terms.form is Form.EXPERTS:
        if expert is None:
            message = "a stacked delta was asked for without an expert"
            raise InputError(message, code=Code.INTERNAL)
        columns = slice(expert, None, terms.experts)
        if terms.conventions.get("packing") == "unsloth":
            rank = b.shape[1] // terms.experts
            columns = slice(expert * rank, (expert + 1) * rank)
        return b[:, columns], a.reshape(terms.experts, -1, a.shape[1])[expert]
    a = _diagonal(a.reshape(a.shape[0], -1), terms.conventions.get("blocks_a", 0))
    b = _diagonal(b.reshape(b.shape[0], -1), terms.conventions.get("blocks_b", 0))
    return b, a


def _diagonal(factor: torch.Tensor, blocks: int) -> torch.Tensor:
    """BD-LoRA: `blocks` chunks of the rows, set on a diagonal."""
    if not blocks:
        return factor
    height, width = factor.shape[0] // blocks, factor.shape[1]
    spread = factor.new_zeros((factor.shape[0], width * blocks))
    for block in range(blocks):
        rows = slice(block * height, (block + 1) * height)
        spread[rows, block * width : (block + 1) * width] = factor[rows]
    return spread


def stored_shapes(terms: Terms, rank: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the factors that `stored_factors` gives, by role."""
    if terms.form is Form.EMBEDDING:
        return {"embedding_A": (rank, terms.inner), "embedding_B": (terms.out, rank)}
    if terms.form is Form.EXPERTS:
        stack = terms.experts * rank
        return {"A": (stack, terms.inner), "B": (terms.out, stack)}
    inner = terms.inner
    for size in terms.kernel:
        inner //= size
    return {
        "A": (rank, inner, *terms.kernel),
        "B": (terms.out, rank, *(1 for _ in terms.kernel)),
    }


def stored_factors(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], terms: Terms
) -> dict[str, torch.Tensor]:
    """The factors of one matrix (or of all experts) as LoRA stores them, by role.

    The inverse of `product_factors`: left (out, r) and right (r, in) of each matrix, all of one r.
    """
    import torch

    left, right = pairs[0]
    shapes = stored_shapes(terms, right.shape[0])
    if terms.form is Form.EMBEDDING:
        return {"embedding_A": right, "embedding_B": left}
    if terms.form is Form.EXPERTS:
        # (out, expert, r) or (out, r, expert): which of both varies fastest is the packing.
        columns = torch.stack([pair[0] for pair in pairs], dim=1)
        if terms.conventions.get("packing") != "unsloth":
            columns = columns.transpose(1, 2)
        stack = torch.cat([pair[1] for pair in pairs])
        return {"A": stack, "B": columns.reshape(shapes["B"])}
    return {"A": right.reshape(shapes["A"]), "B": left.reshape(shapes["B"])}
