"""What a seed stands for: architecture, base on disk, adapters, one operation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from campaign import architectures, other_tuners

Options = dict[str, Any]
STORAGE = ("one file", "shards", "shards", "reordered", "module names", "wrongly tied")


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter: PEFT's type and options, and how it is saved; `seed` draws its values.

    `vocabulary`: the embeddings are resized to that before. `older`: its keys are those of the
    base's files, as transformers 4 named modules, where these differ.
    """

    kind: str
    options: Options
    seed: int
    save: Options
    vocabulary: int | None = None
    older: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """The verb and what it is asked for."""

    verb: str
    options: Options


@dataclass(frozen=True, slots=True)
class Case:
    """All of one case; the adapters are drawn when the model is there."""

    seed: int
    architecture: str
    tie: bool | None
    storage: str
    operation: Operation

    def as_json(self) -> Options:
        """Plain data."""
        return asdict(self)


def case_of(seed: int) -> Case:
    """The same case for the same seed, on any machine."""
    rng = random.Random(seed)
    architecture = rng.choice(architectures.names())
    tie = rng.choice((None, None, True, False))
    storage = rng.choice(STORAGE)
    return Case(seed, architecture, tie, storage, operation_of(rng))


_SHARES = {
    "merge": 22,
    "verify": 6,
    "unmerge": 7,
    "resize": 13,
    "combine": 24,
    "convert": 16,
    "extract": 6,
    "validate": 3,
    "diff": 3,
}
WEIGHTS = (1.0, 1.0, 0.5, -0.3, 2.0, 0.0)


def operation_of(rng: random.Random) -> Operation:
    """A verb, by its share, and its options."""
    verb = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    drawn: Options = {}
    if verb in {"merge", "verify", "unmerge"}:
        count = rng.choice((1, 1, 1, 2))
        drawn["weights"] = [1.0] if rng.random() < 0.3 else rng.choices(WEIGHTS, k=count)
        if rng.random() < 0.15:
            drawn["tie"] = rng.choice(("keep", "error"))
        if verb == "unmerge":
            drawn["reversible"] = rng.random() < 0.6
    if verb == "resize":
        drawn["rank"] = rng.choice((None, None, 1, 2))
        drawn["base"] = rng.random() < 0.3
    if verb == "combine":
        drawn |= _combination(rng)
    if verb == "convert":
        drawn["way"] = rng.choice(("peft", "bake", "lora", "lora of base", "mlx", "mlx", "gguf"))
        drawn["base"] = rng.random() < 0.5
    if verb == "extract":
        drawn["rank"] = rng.choice((12, 16, 64))
    if verb == "diff":
        drawn["way"] = rng.choice(("peft", "bake", "resize", "mlx"))
        drawn["base"] = rng.random() < 0.5
    return Operation(verb, drawn)


def _combination(rng: random.Random) -> Options:
    count = rng.choice((1, 2, 2, 2, 2, 3))
    weights = [1.0] * count if rng.random() < 0.3 else rng.choices(WEIGHTS, k=count)
    method, base = rng.choice(("cat", "cat", "svd")), rng.random() < 0.4
    rank = 64 if method == "svd" or (base and rng.random() < 0.5) else None
    twice = count == 2 and rng.random() < 0.2
    return {"weights": weights, "method": method, "rank": rank, "base": base, "same": twice}


@dataclass(frozen=True, slots=True)
class Modules:
    """Names of the modules of a model, by what PEFT can do with them."""

    linears: tuple[str, ...]
    kernels: tuple[str, ...]
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    heads: tuple[str, ...]
    others: tuple[str, ...]
    parameters: tuple[str, ...]
    flat_parameters: tuple[str, ...]

    @classmethod
    def of(cls, model: Any) -> Modules:
        """Sorted by kind, in the model's order."""
        found: dict[str, list[str]] = {field: [] for field in cls.__dataclass_fields__}
        ends = {id(model.get_output_embeddings())}
        for name, module in model.named_modules():
            if name:
                found[_sort_of(module, ends, name)].append(name)
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if parameter.dim() == 3 and leaf != "weight":
                found["parameters"].append(name)
            elif parameter.dim() == 2 and leaf == "weight":
                found["flat_parameters"].append(name)
        return cls(**{field: tuple(names) for field, names in found.items()})


def _sort_of(module: nn.Module, ends: set[int], name: str) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if isinstance(module, nn.Linear | Conv1D):
        top = "." not in name or id(module) in ends or "classifier" in name
        return "heads" if top else "linears"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "kernels"
    if "norm" in type(module).__name__.lower() or "norm" in name.rpartition(".")[2].lower():
        return "norms"
    return "others"


def leaf(name: str) -> str:
    """The last part of a module's name that is no number."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return parts[-1]


def adapter_of(rng: random.Random, modules: Modules, *, alone: bool) -> Trained:
    """An adapter for a model of these modules; `alone`: it may resize the vocabulary."""
    if rng.random() < 0.22 and modules.linears:
        kind, options = other_tuners.draw(rng, modules)
        return Trained(kind, options, rng.randrange(1 << 30), {}, None, rng.random() < 0.2)
    options = _lora(rng, modules)
    save: Options = {}
    if rng.random() < 0.1:
        save["save_embedding_layers"] = rng.random() < 0.7
    resized = alone and rng.random() < 0.07 and bool(modules.embeddings)
    older = rng.random() < 0.2
    return Trained("LORA", options, rng.randrange(1 << 30), save, 70 if resized else None, older)


def _lora(rng: random.Random, modules: Modules) -> Options:
    options: Options = {
        "r": rng.choice((1, 2, 3, 4, 5, 8)),
        "lora_alpha": rng.choice((1, 4, 7, 8, 16, 3.5, -5)),
        "target_modules": targets_of(rng, modules),
    }
    for chance, drawer in _LORA_DRAWS:
        if rng.random() < chance:
            options |= drawer(rng, modules, options)
    return options


def targets_of(rng: random.Random, modules: Modules) -> Any:
    """A list, an expression, or `all-linear`."""
    pool = modules.linears or modules.heads or modules.kernels or modules.embeddings
    way = rng.random()
    if way < 0.12 and modules.linears:
        return "all-linear"
    if way < 0.22:
        return _expression(rng, pool)
    chosen = {leaf(rng.choice(pool)) for _ in range(rng.choice((1, 1, 2, 3)))}
    if rng.random() < 0.12:
        chosen = {rng.choice(pool) for _ in range(rng.choice((1, 2)))}
    for chance, more in ((0.1, modules.embeddings), (0.08, modules.heads), (0.06, modules.kernels)):
        if more and rng.random() < chance:
            chosen.add(leaf(rng.choice(more)) if rng.random() < 0.8 else rng.choice(more))
    if rng.random() < 0.05:
        chosen.add("not_in_this_model")
    return sorted(chosen)


def _expression(rng: random.Random, pool: Sequence[str]) -> str:
    one, other = leaf(rng.choice(pool)), leaf(rng.choice(pool))
    return rng.choice((rf".*\.({one}|{other})", rf".*1\..*{one}", rf".*{one}"))


def _flags(rng: random.Random, _modules: Modules, _options: Mapping[str, Any]) -> Options:
    return rng.choice(
        (
            {"use_rslora": True},
            {"use_rslora": True},
            {"use_dora": True},
            {"use_dora": True},
            {"fan_in_fan_out": True},
            {"lora_bias": True},
            {"bias": "all"},
            {"bias": "lora_only"},
        )
    )


def _saved(rng: random.Random, modules: Modules, _options: Mapping[str, Any]) -> Options:
    pools = [
        pool for pool in (modules.heads, modules.embeddings, modules.norms, modules.linears) if pool
    ]
    names = [rng.choice(rng.choice(pools)) for _ in range(rng.choice((1, 1, 2)))]
    return {"modules_to_save": sorted({leaf(n) if rng.random() < 0.8 else n for n in names})}


def _excluded(rng: random.Random, modules: Modules, _options: Mapping[str, Any]) -> Options:
    name = rng.choice(modules.linears or modules.embeddings or ("none",))
    return {"exclude_modules": rng.choice(([leaf(name)], [name], rf".*0\..*{leaf(name)}"))}


def _layers(rng: random.Random, modules: Modules, _options: Mapping[str, Any]) -> Options:
    drawn: Options = {"layers_to_transform": rng.choice((0, [0], [1], [0, 1]))}
    numbered = [
        name.split(".") for name in modules.linears if any(map(str.isdigit, name.split(".")))
    ]
    if numbered and rng.random() < 0.3:
        parts = rng.choice(numbered)
        drawn["layers_pattern"] = parts[next(i for i, x in enumerate(parts) if x.isdigit()) - 1]
    return drawn


def _patterns(rng: random.Random, modules: Modules, _options: Mapping[str, Any]) -> Options:
    drawn: Options = {}
    pool = modules.linears or modules.embeddings or modules.kernels
    for field, values in (("rank_pattern", (1, 2, 6)), ("alpha_pattern", (2, 9, 0.5, -3))):
        if rng.random() < 0.7:
            names = [rng.choice(pool) for _ in range(rng.choice((1, 2)))]
            ways = (leaf, str, lambda name: rf".*0\..*{leaf(name)}", lambda name: f"^{name}")
            drawn[field] = {rng.choice(ways)(name): rng.choice(values) for name in names}
    return drawn


def _stacked(rng: random.Random, modules: Modules, options: Mapping[str, Any]) -> Options:
    pool = modules.parameters or (modules.flat_parameters if rng.random() < 0.2 else ())
    if not pool:
        return {}
    names = {_last_two(rng.choice(pool)) for _ in range(rng.choice((1, 2, 2)))}
    drawn: Options = {"target_parameters": sorted(names)}
    if rng.random() < 0.4 and isinstance(options["target_modules"], list):
        drawn["target_modules"] = []
    return drawn


def _last_two(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _rows(rng: random.Random, modules: Modules, _options: Mapping[str, Any]) -> Options:
    if not modules.embeddings:
        return {}
    rows = rng.sample(range(3, 56), 3)
    return {
        "trainable_token_indices": rows
        if rng.random() < 0.5
        else {leaf(modules.embeddings[0]): rows}
    }


def _initial(rng: random.Random, _modules: Modules, _options: Mapping[str, Any]) -> Options:
    kind = rng.choice(("pissa", "olora", "gaussian", "orthogonal", False))
    return {"init_lora_weights": kind, **({"r": 4} if kind == "orthogonal" else {})}


def _tying(_rng: random.Random, _modules: Modules, _options: Mapping[str, Any]) -> Options:
    return {"ensure_weight_tying": True}


_LORA_DRAWS = (
    (0.45, _flags),
    (0.15, _flags),
    (0.2, _saved),
    (0.12, _excluded),
    (0.15, _layers),
    (0.2, _patterns),
    (0.35, _stacked),
    (0.1, _rows),
    (0.1, _initial),
    (0.06, _tying),
)


def train(model: nn.Module, trained: Trained) -> None:
    """Random steps in place of training: every trainable tensor moves."""
    random_numbers = torch.Generator().manual_seed(trained.seed)
    near = trained.options.get("init_lora_weights") in ("pissa", "olora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=random_numbers)
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * noise.abs())
            elif "lora_" in name and not near:
                parameter.copy_(0.25 * noise)
            else:
                parameter.add_(other_tuners.step(trained.kind) * noise)
