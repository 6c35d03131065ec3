"""The adapter that turns one checkpoint into another.

Matrices become LoRA factors; what is no matrix, or would take as much room as factors, is carried
whole as a saved module. Names are those of the library's modules, so that PEFT loads the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from adaptool.dtypes import BY_TORCH_NAME, Dtype
from adaptool.errors import AdaptoolError, MismatchError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts.peft_encode import PLAIN
from adaptool.model.adapter import Adapter, Delta, Form, Replaced, Terms
from adaptool.model.extract_options import ExtractOptions
from adaptool.model.extraction import Difference, Extractor
from adaptool.model.options import OutputDtype
from adaptool.model.reading import is_allowed
from adaptool.names.families import CONV1D, TRANSPOSED_EXPERTS, model_types
from adaptool.names.renames import CheckpointNames, Placement, module_names
from adaptool.ops import ties
from adaptool.ops.base_norms import opened_drafts
from adaptool.ops.drafts import Drafts
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef

# The last name of modules that look rows up.
EMBEDDINGS = frozenset(
    {
        "embed_in",
        "embed_positions",
        "embed_tokens",
        "position_embeddings",
        "shared",
        "tok_embeddings",
        "token_type_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The adapter, the differences behind its deltas by name, how many tensors did not change."""

    adapter: Adapter
    differences: Mapping[str, Difference]
    unchanged: int
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class _Making:
    """What is asked for, and what builds up while the checkpoints are compared."""

    names: _Names
    options: ExtractOptions
    extractor: Extractor
    deltas: list[Delta] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    unchanged: int = 0


Report = Callable[[int, int], None]


def extracted(
    base: Checkpoint,
    tuned: Checkpoint,
    options: ExtractOptions,
    extractor: Extractor,
    report: Report | None = None,
    *,
    allow_drop: Sequence[str] = (),
) -> Extracted:
    """The adapter `tuned - base`, its factors to be computed when they are written.

    Tensors that one side lacks and that match a glob of `allow_drop` are left out. MismatchError
    (exit 4), carrying every other misfit, where the checkpoints are not of one model, or where
    nothing differs.
    """
    old, new = opened_drafts(base), opened_drafts(tuned)
    alone = [
        name
        for name in sorted(old.keys() | new.keys())
        if name not in new or (name not in old and not _is_head(name))
    ]
    dropped = tuple(name for name in alone if is_allowed(name, allow_drop))
    errors = [
        _one_sided(name, base, tuned, in_base=name in old) for name in alone if name not in dropped
    ]
    if errors:
        raise gathered(errors)
    making = _Making(_Names(base, list(old)), options, extractor)
    total, done = sum(draft.source.length for draft in new.values()), 0
    for name, draft in new.items():
        if name in dropped:
            continue
        if name in old:
            _take(making, name, old[name].source, draft.source)
        else:
            _save(making, making.names.parameter(name), draft.source)
        done += draft.source.length
        if report is not None:
            report(done, total)
    if not making.deltas and not making.replaced:
        message = "no tensor differs from the base's: there is nothing to extract"
        raise MismatchError(message, code=Code.NOTHING_TO_DO, file=tuned.name)
    _complete(making, new)
    return Extracted(
        replace(_adapter(making, base, tuned, old), dropped=dropped),
        making.differences,
        making.unchanged,
        tuple(_notes(making)),
    )


def _is_head(name: str) -> bool:
    """A head that the base ties to its embedding and the tuned model stores."""
    return any(name.endswith(head) for head in ties.HEADS)


def _one_sided(name: str, base: Checkpoint, tuned: Checkpoint, *, in_base: bool) -> AdaptoolError:
    here, there = (base, tuned) if in_base else (tuned, base)
    message = f"is not in {there.name}"
    hint = f"both must be checkpoints of one model; --allow-drop {name!r} leaves it out"
    return MismatchError(
        message, code=Code.MODULE_NOT_IN_BASE, file=here.name, tensor=name, hint=hint
    )


class _Names:
    """Module parameter names of a checkpoint's tensors, and what its family says of them."""

    def __init__(self, base: Checkpoint, tensors: Sequence[str]) -> None:
        self._kinds = model_types(base.config)
        self._checkpoint = CheckpointNames(tensors, self._kinds)
        self.conv1d = bool(CONV1D & set(self._kinds))
        self.swapped_experts = bool(TRANSPOSED_EXPERTS & set(self._kinds))

    def parameter(self, tensor: str) -> str:
        """The module's parameter where the tensor is all of it, else the tensor's own name."""
        whole = (Placement(tensor),)
        candidates = module_names(self._kinds, tensor)
        fitting = (name for name in candidates if self._checkpoint.placements(name) == whole)
        return next(fitting, tensor)


def _take(making: _Making, name: str, before: TensorRef, after: TensorRef) -> None:
    """One tensor that both have: factors, a whole tensor, or nothing where it did not change."""
    parameter = making.names.parameter(name)
    if before.shape != after.shape:
        _check_resized(name, parameter, before.shape, after.shape)
        _save(making, parameter, after)
        return
    if not before.dtype.floating or not making.extractor.is_changed(before, after):
        making.unchanged += 1
        return
    shaped = _terms(making.names, parameter, before.shape)
    if shaped is None:
        _save(making, parameter, after)
        return
    difference = Difference(name, before, after, *shaped)
    rank = _rank(difference, making)
    if _is_cheap(difference.terms, rank):
        _factor(making, parameter, difference, rank)
    else:
        _save(making, parameter, after)


def _is_cheap(terms: Terms, rank: int) -> bool:
    """Whether factors take less room than the matrix (stacked experts cannot be saved alone)."""
    return bool(terms.experts) or rank * (terms.out + terms.inner) < terms.out * terms.inner


def _factor(making: _Making, parameter: str, difference: Difference, rank: int) -> None:
    making.differences[parameter] = difference
    making.deltas.append(
        Delta(
            module=parameter.removesuffix(".weight"),
            parameter=parameter,
            tuner="lora",
            roles=making.extractor.factors(difference, rank),
            terms=replace(difference.terms, rank=rank, alpha=float(rank)),
            dtype=_dtype(difference.tuned, making.options),
        )
    )


def _save(making: _Making, parameter: str, value: TensorRef) -> None:
    dtype = _dtype(value, making.options)
    making.replaced.append(Replaced(parameter, value, saved_module=True, dtype=dtype))


def _check_resized(
    name: str, parameter: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """MismatchError unless it is an embedding or a head of another vocabulary."""
    if before[1:] == after[1:] and (_is_embedding(parameter) or _is_head(name)):
        return
    message = f"{list(before)} in the base, {list(after)} in the tuned model"
    raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=name)


def _rank(difference: Difference, making: _Making) -> int:
    most = min(difference.terms.out, difference.terms.inner)
    wanted = making.options.rank
    if wanted is None:
        wanted = making.extractor.rank_for(difference, making.options.energy or 1.0)
    return min(wanted, most)


def _terms(names: _Names, parameter: str, shape: tuple[int, ...]) -> tuple[Terms, bool] | None:
    """How the tensor is a delta, and whether it lies transposed; None for what is no matrix."""
    kind = parameter.rpartition(".")[2]
    if len(shape) < 2 or min(shape[:2]) < 2:
        return None
    if kind != "weight":
        return _stacked(names, shape) if len(shape) == 3 else None
    if len(shape) > 2:
        return Terms(Form.CONVOLUTION, shape[0], prod(shape[1:]), 1.0, kernel=shape[2:]), False
    if _is_embedding(parameter):
        return Terms(Form.EMBEDDING, shape[1], shape[0], 1.0), True
    if names.conv1d and not _is_head(parameter):
        return Terms(Form.LINEAR, shape[1], shape[0], 1.0), True
    return Terms(Form.LINEAR, shape[0], shape[1], 1.0), False


def _stacked(names: _Names, shape: tuple[int, ...]) -> tuple[Terms, bool]:
    count, rows, columns = shape
    if names.swapped_experts:
        return Terms(Form.EXPERTS, columns, rows, 1.0, experts=count), True
    return Terms(Form.EXPERTS, rows, columns, 1.0, experts=count), False


def _is_embedding(parameter: str) -> bool:
    return parameter.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS


def _dtype(value: TensorRef, options: ExtractOptions) -> Dtype:
    return value.dtype if options.dtype is OutputDtype.KEEP else BY_TORCH_NAME[str(options.dtype)]


def _complete(making: _Making, new: Drafts) -> None:
    """PEFT saves modules, not parameters: the other tensors of a saved one come along.

    A module that is saved for its bias alone is saved whole, in place of its factors.
    """
    saved = {item.parameter.rpartition(".")[0] for item in making.replaced}
    there = {item.parameter for item in making.replaced}
    for name, draft in new.items():
        parameter = making.names.parameter(name)
        if parameter.rpartition(".")[0] in saved and parameter not in there:
            _save(making, parameter, draft.source)
    making.deltas = [
        delta for delta in making.deltas if delta.parameter.rpartition(".")[0] not in saved
    ]
    kept = {delta.parameter for delta in making.deltas}
    making.differences = {
        name: difference for name, difference in making.differences.items() if name in kept
    }


def _adapter(making: _Making, base: Checkpoint, tuned: Checkpoint, old: Drafts) -> Adapter:
    kinds = model_types(base.config)
    tied = ties.tied_pair(old, base.config) is not None
    embeds = any(delta.terms.form is Form.EMBEDDING for delta in making.deltas)
    config = {
        **PLAIN,
        "fan_in_fan_out": bool(CONV1D & set(kinds)),
        "modules_to_save": sorted({item.parameter.rpartition(".")[0] for item in making.replaced})
        or None,
    }
    if tied and embeds:
        config["ensure_weight_tying"] = True
    return Adapter(
        name=tuned.name,
        layout="peft",
        config=config,
        deltas=tuple(making.deltas),
        replaced=tuple(making.replaced),
        leftover=(),
        tensors={},
        findings=(),
        base=_base_name(base),
        keeps_ties=tied and embeds,
    )


def _base_name(base: Checkpoint) -> str | None:
    """What the config calls the model, never a path of this machine."""
    found = (base.config or {}).get("_name_or_path")
    return found if isinstance(found, str) and found and not found.startswith(("/", ".")) else None


def _notes(making: _Making) -> Iterator[Finding]:
    if making.replaced:
        count = sum(item.value.elements for item in making.replaced)
        message = f"{len(making.replaced)} tensors are carried whole ({count} elements)"
        yield Finding(
            Code.CARRIED_WHOLE, Severity.NOTE, message, tensor=making.replaced[0].parameter
        )
