"""From the module path of a PEFT key to the parameter it updates.

Three kinds of path are not simply `<module>.weight`: a parameter targeted by name
(`target_parameters`, whose keys do not name it), an nn.MultiheadAttention (whose output projection
PEFT up to 0.21.2 adds twice), and the `.base_layer` parts that wrapping leaves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptool.errors import InputError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Form, Terms
from adaptool.model.options import ExpertPacking
from adaptool.names.patterns import LONGEST_PATH
from adaptool.store.tensors import TensorRef

WRAPPED = ".base_layer"
MHA_OUT = ".base_layer.out_proj"
# Unsloth since 2026.9.6 records the packing it trained with; PEFT drops the field when it saves.
PACKING_FIELD = "lora_B_layout"
PACKINGS = {"rank_major": ExpertPacking.PEFT, "grouped_by_expert": ExpertPacking.UNSLOTH}
# PEFT wraps parameters in the order in which the module registers them, the first one innermost.
REGISTERED = (
    *("gate_up_proj", "gate_up_proj_bias", "gate_proj", "w1", "v1", "up_proj", "w2"),
    *("down_proj", "down_proj_bias", "w3"),
)


class ModuleNames:
    """Parameter names for the module paths of one adapter."""

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorRef],
        prefix: str,
        packing: ExpertPacking = ExpertPacking.PEFT,
    ) -> None:
        """Take in the config's `target_parameters` and how deep each module is wrapped.

        `packing` is that of stacked experts where the config does not record it.
        """
        self._recorded = PACKINGS.get(config.get(PACKING_FIELD) or "")
        self._asked = packing
        self._stacks: list[str] = []
        self._targets = tuple(config.get("target_parameters") or ())
        self._modules = config.get("target_modules") or ()
        self._by_parent: dict[str, list[str]] = {}
        for target in self._targets:
            parent, _, name = target.rpartition(".")
            self._by_parent.setdefault(parent, []).append(name)
        self._depths: dict[str, set[int]] = {}
        self._doubled: list[str] = []
        if self._targets:
            self._measure(tensors, prefix)

    def _measure(self, tensors: Mapping[str, TensorRef], prefix: str) -> None:
        for key in tensors:
            path, found, _ = key.removeprefix(prefix).partition(".lora_A.")
            if found:
                module, depth = unwrapped(path)
                self._depths.setdefault(module, set()).add(depth)

    def is_parameter(self, path: str) -> bool:
        """Whether `path` stands for a parameter targeted by name."""
        return bool(self._names(unwrapped(path)[0]))

    def parameter(self, path: str) -> str:
        """The full name of the parameter that keys under `path` update."""
        if path.endswith(MHA_OUT):
            return path.removesuffix(MHA_OUT) + ".out_proj.weight"
        module, depth = unwrapped(path)
        names = self._names(module)
        if not names:
            return f"{module.replace(WRAPPED + '.', '.')}.weight"
        depths = self._depths[module]
        if len(names) != len(depths) or depths != set(range(len(depths))):
            message = (
                f"{len(depths)} wrapped parameters for the {len(names)} that target_parameters "
                f"names here ({', '.join(names)})"
            )
            raise InputError(
                message, code=Code.SHAPE_AMBIGUOUS, tensor=path, field="target_parameters"
            )
        return f"{module}.{names[len(names) - 1 - depth]}"

    def _names(self, module: str) -> list[str]:
        """The parameters of `module` that the config targets, innermost wrapping first."""
        names: set[str] = set()
        suffix = module
        while suffix:
            names.update(self._by_parent.get(suffix, ()))
            suffix = suffix.partition(".")[2]
        if len(names) < len(self._depths.get(module, ())) and not self._is_targeted(module):
            # PEFT names parameters alone where it was asked for all linear layers.
            names.update(self._by_parent.get("", ()))
        return sorted(names, key=_registration)

    def _is_targeted(self, module: str) -> bool:
        """Whether `target_modules` names the module itself; its expression was checked before."""
        if isinstance(self._modules, str):
            return re.fullmatch(self._modules, module[:LONGEST_PATH]) is not None
        return any(f".{module}".endswith(f".{name}") for name in self._modules)

    def adjusted(self, path: str, terms: Terms) -> Terms:
        """Terms with what keys and shapes do not tell.

        That is PEFT's double counting of nn.MultiheadAttention's output projection, and the
        packing of stacked experts.
        """
        if terms.form is Form.EXPERTS:
            return self._packed(path, terms)
        if not path.endswith(MHA_OUT):
            return terms
        # The adapter was trained with the factor 2 in every forward, so the merge keeps it.
        self._doubled.append(path)
        return self.scaled(terms, 2 * terms.scaling)

    def _packed(self, path: str, terms: Terms) -> Terms:
        self._stacks.append(path)
        packing = self._recorded or self._asked
        if packing is ExpertPacking.PEFT:
            return terms
        return replace(terms, conventions={**terms.conventions, "packing": str(packing)})

    @staticmethod
    def scaled(terms: Terms, scaling: float) -> Terms:
        """The same terms with another scaling."""
        return replace(terms, scaling=scaling)

    def findings(self) -> tuple[Finding, ...]:
        """One note for all doubled output projections, one for a packing that was not asked for."""
        return (*self._packing_notes(), *self._doubling_notes())

    def _packing_notes(self) -> tuple[Finding, ...]:
        if not self._stacks or self._recorded in (None, self._asked):
            return ()
        message = f"records the packing of stacked experts, so they are read as {self._recorded}'s"
        return (Finding(Code.PEFT_QUIRK, Severity.NOTE, message, field=PACKING_FIELD),)

    def _doubling_notes(self) -> tuple[Finding, ...]:
        if not self._doubled:
            return ()
        message = (
            f"{len(self._doubled)} attention output projections count twice, as PEFT up to 0.21.2 "
            "trains and merges them"
        )
        return (Finding(Code.PEFT_QUIRK, Severity.WARNING, message, tensor=self._doubled[0]),)


def unwrapped(path: str) -> tuple[str, int]:
    """The path without trailing `.base_layer` parts, and how many there were."""
    depth = 0
    while path.endswith(WRAPPED):
        path = path.removesuffix(WRAPPED)
        depth += 1
    return path, depth


def parameter_paths(parameters: Sequence[str]) -> dict[str, str]:
    """The module path in the keys of each parameter that is targeted by name.

    The inverse of `ModuleNames.parameter`: of several in one module the first registered one is
    wrapped first, and so lies deepest.
    """
    by_module: dict[str, list[str]] = {}
    for parameter in parameters:
        module, _, name = parameter.rpartition(".")
        by_module.setdefault(module, []).append(name)
    return {
        f"{module}.{name}": module + WRAPPED * (len(names) - 1 - place)
        for module, names in by_module.items()
        for place, name in enumerate(sorted(names, key=_registration))
    }


def pattern_name(path: str) -> str:
    """The module that PEFT looks rank and alpha up for, from the path in a key.

    An nn.MultiheadAttention's output projection has those of the attention itself.
    """
    return unwrapped(path.removesuffix(".out_proj") if path.endswith(MHA_OUT) else path)[0].replace(
        f"{WRAPPED}.", "."
    )


def _registration(name: str) -> tuple[int, str]:
    return (REGISTERED.index(name) if name in REGISTERED else len(REGISTERED), name)
