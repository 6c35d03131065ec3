"""What PEFT computes of an adapter: its forward, and the weights that its merge makes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PeftType, get_peft_model
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

from campaign.bases import Base, Tensors, Void, state_of, untied
from campaign.drawing import Trained, train
from campaign.forwards import answer

NEAR = 2e-3  # of the largest change of the output; a wrong delta is far above, float32 far below


@dataclass(frozen=True, slots=True)
class Truth:
    """An adapter on disk and what PEFT makes of it.

    `merged`: the weights, every parameter apart; None where PEFT's merge is not its forward.
    `problems`: the keys that PEFT itself misses or does not expect.
    """

    trained: Trained
    path: Path
    answer: torch.Tensor
    merged: Tensors | None
    problems: set[str]


def truth_of(base: Base, trained: Trained, path: Path) -> Truth:
    """Train the adapter, save it to `path`, read it again as PEFT does. Raises Void."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(trained.kind)](**trained.options)
    tuned = get_peft_model(base.fresh(trained.vocabulary), config)
    train(tuned, trained)
    tuned.eval().save_pretrained(path, **trained.save)
    before = answer(tuned)
    try:
        read, problems = peft_reads(base, path, trained.vocabulary)
        after = answer(read)
    except Exception as error:
        reason = f"PEFT does not reload its adapter: {type(error).__name__}"
        raise Void(reason) from error
    if not torch.isfinite(after).all():
        raise Void("the adapter's answer is not finite")
    if distance(before, after, base.answer) > NEAR:
        raise Void("PEFT reloads another adapter than it saved")
    if _forgets_a_bias(read):
        raise Void("PEFT's token rows of a head forget its bias")
    return Truth(trained, path, after, _merged(base, path, trained.vocabulary, after), problems)


def _forgets_a_bias(tuned: PeftModel) -> bool:
    """PEFT's forward of a tied head with token rows lacks the head's bias; its merge does not."""
    wrappers = (each for each in tuned.modules() if isinstance(each, TrainableTokensLayer))
    return any(getattr(each.get_base_layer(), "bias", None) is not None for each in wrappers)


def peft_reads(
    base: Base, path: Path, vocabulary: int | None = None, *, apart: bool = False
) -> tuple[PeftModel, set[str]]:
    """PEFT's model of the adapter at `path`, and the keys that it missed or left over."""
    model = base.apart(vocabulary) if apart else base.fresh(vocabulary)
    with _load_results() as results:
        torch.manual_seed(3)
        tuned = PeftModel.from_pretrained(model, str(path))
    found = {
        f"{what} {key}"
        for result in results
        for what in ("missing_keys", "unexpected_keys")
        for key in getattr(result, what)
    }
    return tuned.eval(), found


@contextmanager
def _load_results() -> Any:
    """Collects what PEFT's `load_adapter` returns."""
    results: list[Any] = []
    original = PeftModel.load_adapter

    def recording(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        results.append(original(self, *args, **kwargs))
        return results[-1]

    with mock.patch.object(PeftModel, "load_adapter", recording):
        yield results


def merged_by_peft(
    base: Base, path: Path, vocabulary: int | None = None, *, apart: bool = True
) -> Tensors:
    """The weights that PEFT's merge makes, tied parameters apart (before the merge, or after)."""
    tuned, _ = peft_reads(base, path, vocabulary, apart=apart)
    return state_of(untied(tuned.merge_and_unload()))


def _merged(
    base: Base, path: Path, vocabulary: int | None, expected: torch.Tensor
) -> Tensors | None:
    """The first of the two merges that computes what the adapted model does."""
    for apart in (True, False):
        try:
            weights = merged_by_peft(base, path, vocabulary, apart=apart)
            found = forward_of(base, weights, vocabulary)
        except Exception:  # noqa: BLE001, S112  PEFT cannot merge every adapter that it can run
            continue
        if distance(found, expected, base.answer) < NEAR:
            return weights
    return None


def forward_of(base: Base, weights: Tensors, vocabulary: int | None = None) -> torch.Tensor:
    """What the base answers with these weights."""
    model = base.apart(vocabulary)
    model.load_state_dict(weights)
    return answer(model)


def mixed(base: Base, parts: Sequence[tuple[Tensors, float]]) -> Tensors:
    """W + sum of w (f(W) - W), in float64, of what each adapter's merge made."""
    result = {}
    for name, plain in base.state.items():
        if not plain.is_floating_point():
            result[name] = plain
            continue
        total = plain.double()
        for weights, share in parts:
            total = total + share * (weights[name].double() - plain.double())
        result[name] = total.to(plain.dtype)
    return result


def kept_tied(base: Base, groups: Iterable[Sequence[str]], weights: Tensors) -> Tensors:
    """`weights` where both ends of a tie get what either of them was given."""
    result = dict(weights)
    for group in groups:
        changes: list[torch.Tensor] = []
        for name in group:
            change = weights[name] - base.state[name]
            if change.abs().max() > 0 and not any(torch.equal(change, c) for c in changes):
                changes.append(change)
        for name in group:
            result[name] = base.state[name] + sum(changes)
    return result


def distance(found: torch.Tensor, wanted: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest error of the output, as a share of the largest change that is meant."""
    if found.shape != wanted.shape:
        return float("inf")
    # A resized vocabulary answers with more logits than the base.
    change = (wanted - plain).abs().max() if wanted.shape == plain.shape else wanted.abs().max()
    scale = max(float(change), 1e-3 * float(wanted.abs().max()), 1e-9)
    error = float((found - wanted).abs().max()) / scale
    return error if error == error else float("inf")  # noqa: PLR0124  NaN


def different(found: Tensors, wanted: Tensors) -> list[str]:
    """Names of the tensors that are not the same up to float32's arithmetic."""
    wrong = sorted(found.keys() ^ wanted.keys())
    for name in found.keys() & wanted.keys():
        one, other = found[name].double(), wanted[name].double()
        if one.shape != other.shape:
            wrong.append(name)
            continue
        if not one.numel():
            continue
        worst = float((one - other).abs().max())
        if not worst <= 2e-4 * max(float(other.abs().max()), 1e-2):
            wrong.append(name)
    return sorted(wrong)


@contextmanager
def quiet() -> Any:
    """PEFT and transformers warn of much that is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
