"""Runs one case: the operation of adaptool, and the judge that never reads with adaptool."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import adaptool
from adaptool.errors import AdaptoolError, InternalError
from adaptool.model.options import Strength
from campaign import older_names
from campaign.bases import Base, Tensors, Void, load, state_of, tied_groups, untied
from campaign.drawing import Case, Modules, Trained, adapter_of
from campaign.forwards import answer
from campaign.truths import (
    NEAR,
    Truth,
    different,
    distance,
    forward_of,
    kept_tied,
    merged_by_peft,
    mixed,
    peft_reads,
    truth_of,
)

TRIES = 6
NEED_NAMES = {"resize", "combine", "convert", "diff"}  # they write or compare names as they are
ROUNDING = 1e-4  # of a result that is exact but for float32
FULL = 64  # at least the smaller side of every matrix of every small model


class Wrong(Exception):
    """What adaptool wrote or said is not what the judge found."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended: agreed, refused, wrong, crash or void, and why."""

    outcome: str
    detail: str = ""
    code: str = ""
    adapters: tuple[Trained, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Scene:
    """A case with its base and its adapters' truths, in a folder of its own."""

    case: Case
    base: Base
    truths: tuple[Truth, ...]
    folder: Path

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the operation."""
        return self.case.operation.options

    def out(self, name: str = "out") -> Path:
        """Where an output goes."""
        return self.folder / name


def judge(case: Case, folder: Path, adapters: tuple[Trained, ...] | None = None) -> Outcome:
    """The outcome of the case; `adapters` in place of those that its seed draws."""
    drawn: tuple[Trained, ...] = ()
    try:
        base = _base(case, folder / "base")
        truths = _truths(case, base, folder, adapters)
        drawn = tuple(truth.trained for truth in truths)
        detail = VERBS[case.operation.verb](Scene(case, base, truths, folder))
    except Void as void:
        return Outcome("void", str(void), "", drawn)
    except InternalError as error:
        return Outcome("crash", f"{error} | {error.__cause__!r}", str(error.code), drawn)
    except AdaptoolError as error:
        return Outcome("refused", _where_gone(str(error), folder), str(error.code), drawn)
    except Wrong as wrong:
        return Outcome("wrong", _where_gone(str(wrong), folder), "", drawn)
    return Outcome("agreed", detail or "", "", drawn)


def _base(case: Case, path: Path) -> Base:
    try:
        return Base(case, path)
    except Void:
        raise
    except Exception as error:
        raise Void(f"transformers makes no such base: {type(error).__name__}") from error


def _where_gone(text: str, folder: Path) -> str:
    return text.replace(str(folder), "")[:400]


def _truths(
    case: Case, base: Base, folder: Path, adapters: tuple[Trained, ...] | None
) -> tuple[Truth, ...]:
    options = case.operation.options
    keep = case.operation.verb not in NEED_NAMES or bool(options.get("base"))
    if adapters is not None:
        return tuple(
            _renamed(base, _made(base, trained, folder / f"adapter{place}"), keep=keep)
            for place, trained in enumerate(adapters)
        )
    rng = random.Random(case.seed + 1)
    modules = Modules.of(base.loaded)
    count = 1 if options.get("same") else len(options.get("weights", (1.0,)))
    drawn = [
        _drawn(rng, base, modules, folder / f"adapter{place}", alone=count == 1)
        for place in range(count)
    ]
    return tuple(_renamed(base, truth, keep=keep) for truth in drawn)


def _renamed(base: Base, truth: Truth, *, keep: bool) -> Truth:
    """The adapter under older names, where it has any; `keep`: also where PEFT knows them not."""
    if not truth.trained.older:
        return truth
    before = truth.path.with_name(f"{truth.path.name}-new")
    shutil.copytree(truth.path, before)
    if older_names.rename(truth.path, older_names.renames_of(base)):
        if keep or _peft_reads_the_same(base, truth):
            return truth
        return replace(truth, path=before, trained=replace(truth.trained, older=False))
    return replace(truth, trained=replace(truth.trained, older=False))


def _peft_reads_the_same(base: Base, truth: Truth) -> bool:
    try:
        tuned, problems = peft_reads(base, truth.path, truth.trained.vocabulary)
        found = answer(tuned)
    except Exception:  # noqa: BLE001  PEFT refuses in many ways
        return False
    return problems <= truth.problems and distance(found, truth.answer, base.answer) < NEAR


def _drawn(rng: random.Random, base: Base, modules: Modules, path: Path, *, alone: bool) -> Truth:
    """The first of a few draws that PEFT takes, else why it took none."""
    for _ in range(TRIES):
        trained = adapter_of(rng, modules, alone=alone)
        try:
            return truth_of(base, trained, path)
        except Void as void:
            reason = str(void)
        except Exception as error:  # noqa: BLE001  PEFT refuses in many ways
            reason = f"PEFT does not make the adapter: {type(error).__name__}"
        shutil.rmtree(path, ignore_errors=True)
    raise Void(reason)


def _made(base: Base, trained: Trained, path: Path) -> Truth:
    try:
        return truth_of(base, trained, path)
    except Void:
        raise
    except Exception as error:
        reason = f"PEFT does not make the adapter: {type(error).__name__}: {error}"
        raise Void(reason) from error


def _wanted(scene: Scene) -> tuple[torch.Tensor, Tensors | None]:
    """The answer that is meant, and the weights where they are known."""
    weights = scene.options.get("weights", [1.0])
    truths = scene.truths * len(weights) if scene.options.get("same") else scene.truths
    first = truths[0]
    if len(weights) == 1 and weights[0] == 1.0:
        return first.answer, first.merged
    if any(truth.merged is None for truth in truths):
        raise Void("PEFT's merge is not its forward")
    if any(truth.trained.vocabulary for truth in truths):
        if weights[0] == 0.0:
            return scene.base.answer, None
        raise Void("part of a resized vocabulary is not defined")
    pairs = [(truth.merged or {}, share) for truth, share in zip(truths, weights, strict=True)]
    made = mixed(scene.base, pairs)
    return forward_of(scene.base, made), made


def _vocabulary(scene: Scene) -> int | None:
    return scene.truths[0].trained.vocabulary


def _merge(scene: Scene, out: Path, **more: Any) -> Any:
    weights = scene.options.get("weights", [1.0])
    first, *others = scene.truths
    add = [Strength(truth.path, w) for truth, w in zip(others, weights[1:], strict=True)]
    tie = scene.options.get("tie", "untie")
    return adaptool.merge(
        scene.base.path, first.path, out, weight=weights[0], add=add, tie=tie, threads=1, **more
    )


def _judge_model(scene: Scene, out: Path, wanted: torch.Tensor, weights: Tensors | None) -> None:
    """transformers loads `out` and computes what is meant."""
    try:
        model, problems = load(scene.base.kind, out)
        found = answer(model)
    except Exception as error:
        message = f"transformers does not load the merged model: {type(error).__name__}: {error}"
        raise Wrong(message) from error
    if problems - scene.base.problems:
        raise Wrong(f"transformers: {sorted(problems - scene.base.problems)[:4]}")
    made = state_of(untied(model))
    wrong = different(made, weights) if weights is not None else []
    error = distance(found, wanted, scene.base.answer)
    # A router's choice may hang on the last bit: the weights then say that all is well.
    if error > NEAR and (wrong or weights is None or error > 0.05):
        raise Wrong(f"forward of the merged model: {error:.3g}, weights {len(wrong)} {wrong[:3]}")
    if wrong:
        raise Wrong(f"weights of the merged model that no output shows: {len(wrong)} {wrong[:3]}")


def _judge_adapter(
    scene: Scene, out: Path, wanted: torch.Tensor, weights: Tensors | None, *, what: str
) -> None:
    """PEFT loads `out` onto the base and computes what is meant."""
    found = answer(_read_by_peft(scene, out, what))
    error = distance(found, wanted, scene.base.answer)
    if error > NEAR:
        raise Wrong(f"PEFT's forward of {what}: {error:.3g}")
    if weights is not None:
        wrong = different(merged_by_peft(scene.base, out, _vocabulary(scene)), weights)
        if wrong:
            raise Wrong(f"weights of {what} that no output shows: {len(wrong)} {wrong[:3]}")


def _read_by_peft(scene: Scene, out: Path, what: str) -> Any:
    """PEFT's model of `out`; it may miss or leave over no key that it did not with the inputs."""
    try:
        tuned, problems = peft_reads(scene.base, out, _vocabulary(scene))
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
        raise Wrong(f"PEFT does not load {what}: {text}") from error
    new = problems - set().union(*(truth.problems for truth in scene.truths))
    if new:
        raise Wrong(f"PEFT about {what}: {len(new)} {sorted(new)[:3]}")
    return tuned


def _merge_case(scene: Scene) -> None:
    wanted, weights = _wanted(scene)
    if scene.options.get("tie") == "keep":
        groups = tied_groups(scene.base.loaded)
        if groups and weights is None:
            raise Void("PEFT's merge is not its forward")
        if groups and weights is not None and not _vocabulary(scene):
            weights = kept_tied(scene.base, groups, weights)
            wanted = forward_of(scene.base, weights)
    _merge(scene, scene.out())
    _judge_model(scene, scene.out(), wanted, weights)


def _verify_case(scene: Scene) -> None:
    _merge(scene, scene.out())
    if not _verified(scene):
        raise Wrong("verify denies a merge that was just made")
    if _spoil(scene) and _verified(scene):
        raise Wrong("verify agrees with a spoilt merge")


def _verified(scene: Scene) -> bool:
    first, *others = scene.truths
    add = [truth.path for truth in others]
    return bool(adaptool.verify(scene.base.path, first.path, scene.out(), add=add, threads=1).ok)


def _spoil(scene: Scene) -> bool:
    """Change one element of a random tensor of the merged model."""
    rng = random.Random(scene.case.seed)
    file = rng.choice(sorted(scene.out().glob("*.safetensors")))
    tensors = load_file(file)
    floats = [name for name, value in tensors.items() if value.is_floating_point()]
    if not floats:
        return False
    values = tensors[rng.choice(floats)].view(-1)
    place = rng.randrange(len(values))
    values[place] += max(0.01, 0.01 * float(values[place].abs()))
    save_file(tensors, file, {"format": "pt"})
    return True


def _unmerge_case(scene: Scene) -> None:
    exact = bool(scene.options["reversible"])
    _merge(scene, scene.out(), reversible=exact)
    first, *others = scene.truths
    add = [truth.path for truth in others]
    back = scene.out("back")
    done = adaptool.unmerge(scene.out(), first.path, back, add=add, threads=1)
    plain, found = _stored(scene.base.path), _stored(back)
    if exact and not done.exact:
        raise Wrong("unmerge of a reversible merge says that it is not exact")
    if done.exact and (
        plain.keys() != found.keys()
        or not all(torch.equal(value, found[name]) for name, value in plain.items())
    ):
        raise Wrong("unmerge says exact, and the tensors differ from the base's")
    if not done.exact:
        wrong = [n for n, value in plain.items() if n not in found or not _near(value, found[n])]
        if wrong:
            raise Wrong(f"unmerge is far from the base: {len(wrong)} {wrong[:3]}")


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _stored(path: Path) -> Tensors:
    tensors: Tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def _resize_case(scene: Scene) -> None:
    truth, rank = scene.truths[0], scene.options["rank"]
    base = scene.base.path if scene.options["base"] else None
    how: dict[str, Any] = {"error": 0.0} if rank is None else {"rank": rank}
    done = adaptool.resize(truth.path, scene.out(), dtype="float32", base=base, threads=1, **how)
    if rank is None or done.relative_error == 0:
        _judge_adapter(scene, scene.out(), truth.answer, truth.merged, what="the resized adapter")
        return
    if truth.merged is None or _vocabulary(scene):
        raise Void("PEFT's merge is not its forward")
    _check_bound(scene, truth.merged, done.relative_error)


def _check_bound(scene: Scene, wanted: Tensors, bound: float) -> None:
    """The error of what PEFT makes of a lower rank is within the one that was reported."""
    _read_by_peft(scene, scene.out(), "the resized adapter")
    found = merged_by_peft(scene.base, scene.out())
    error = change = 0.0
    for name, plain in scene.base.state.items():
        if plain.is_floating_point():
            error += float((found[name].double() - wanted[name].double()).square().sum())
            change += float((wanted[name].double() - plain.double()).square().sum())
    # DoRA's error without a base is of B A, not of what it makes of W.
    dora = scene.truths[0].trained.options.get("use_dora")
    if error**0.5 > (bound * 1.02 + 1e-4) * change**0.5 and not dora:
        raise Wrong(f"error {(error / change) ** 0.5:.3g} of a resize that reports {bound:.3g}")


def _combine_case(scene: Scene) -> None:
    options = scene.options
    wanted, weights = _wanted(scene)
    paths = [truth.path for truth in scene.truths] * (2 if options["same"] else 1)
    done = adaptool.combine(
        *paths,
        out=scene.out(),
        weights=options["weights"],
        method=options["method"],
        rank=options["rank"],
        base=scene.base.path if options["base"] else None,
        threads=1,
    )
    if not done.exact and (done.relative_error or 0) > ROUNDING:
        raise Void("a combination that says it is not exact")
    _judge_adapter(scene, scene.out(), wanted, weights, what="the combination")


def _convert_case(scene: Scene) -> None:
    truth = scene.truths[0]
    out = _converted(scene, truth.path, scene.options["way"])
    _judge_adapter(scene, out, truth.answer, truth.merged, what=f"{scene.options['way']}")


def _converted(scene: Scene, path: Path, way: str) -> Path:
    """The adapter by way of another layout or form, as a PEFT folder."""
    base = {"base": scene.base.path} if scene.options["base"] else {}
    out = scene.out("converted")
    convert: Callable[..., Any] = adaptool.convert
    if way in {"mlx", "gguf"}:
        suffix = ".gguf" if way == "gguf" else ""
        between = scene.out(f"between{suffix}")
        convert(path, between, to=way, threads=1, **base)
        based = {"base": scene.base.path} if way == "gguf" else base
        convert(between, out, to="peft", threads=1, **based)
    elif way == "lora of base":
        done = convert(path, out, to="lora", base=scene.base.path, rank=FULL, threads=1)
        if (done.relative_error or 0) > ROUNDING:
            raise Void("a conversion that says it is not exact")
    elif way == "resize":
        adaptool.resize(path, out, error=0.0, dtype="float32", threads=1)
    else:
        to = "lora" if way == "lora" else "peft"
        done = convert(path, out, to=to, bake_scale=way == "bake", threads=1, **base)
        if (done.relative_error or 0) > ROUNDING:
            raise Void("a conversion that says it is not exact")
    return out


def _extract_case(scene: Scene) -> None:
    wanted, weights = _wanted(scene)
    _merge(scene, scene.out("merged"))
    done = adaptool.extract(
        scene.base.path, scene.out("merged"), scene.out(), rank=scene.options["rank"], threads=1
    )
    if (done.relative_error or 0) > ROUNDING:
        raise Void("an extraction that says it is not exact")
    _judge_adapter(scene, scene.out(), wanted, weights, what="the extracted adapter")


def _validate_case(scene: Scene) -> None:
    said = adaptool.validate(scene.truths[0].path, base=scene.base.path)
    errors = [str(f.code) for f in said.findings if f.severity.value == "error"]
    try:
        _merge(scene, scene.out())
    except AdaptoolError as error:
        if said.ok:
            raise Wrong(f"validate says ok, merge refuses: {error.code}") from error
        raise
    if not said.ok:
        raise Wrong(f"validate says {errors}, merge accepts")


def _diff_case(scene: Scene) -> None:
    path = scene.truths[0].path
    other = _converted(scene, path, scene.options["way"])
    base = scene.base.path if scene.options["base"] else None
    found = adaptool.diff(path, other, base=base, threads=1)
    if (found.relative_error or 0) > 1e-5 or found.only_in_a or found.only_in_b:
        raise Wrong(
            f"diff of one adapter in two forms: {found.relative_error}, only in "
            f"{found.only_in_a[:2]} {found.only_in_b[:2]}"
        )


VERBS: Mapping[str, Callable[[Scene], Any]] = {
    "merge": _merge_case,
    "verify": _verify_case,
    "unmerge": _unmerge_case,
    "resize": _resize_case,
    "combine": _combine_case,
    "convert": _convert_case,
    "extract": _extract_case,
    "validate": _validate_case,
    "diff": _diff_case,
}
