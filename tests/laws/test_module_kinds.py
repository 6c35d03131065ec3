"""What adaptool.names.module_kinds says of a parameter's module, against transformers' models."""

from __future__ import annotations

import json
import warnings

import pytest

from adaptool.names.module_kinds import Kind, is_headless, kind_of
from adaptool.names.peft_families import TAKEN

transformers = pytest.importorskip("transformers", minversion="5.23")

import modules_from_transformers as generator  # noqa: E402
from renames_from_transformers import build, class_names, config_types  # noqa: E402

ORDINARY = ("bart", "bert", "falcon", "gpt2", "gpt_oss", "llava", "mixtral", "opt", "vit")


@pytest.mark.slow
def test_the_table_is_what_the_generator_writes() -> None:
    """modules.json is generated from the installed transformers and not edited."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert generator.TABLE.read_text() == generator.rendered(generator.table())


def test_the_table_is_of_the_installed_transformers() -> None:
    """The fast part of the law above."""
    assert json.loads(generator.TABLE.read_text())["transformers"] == transformers.__version__


@pytest.mark.parametrize("model_type", ORDINARY)
def test_every_module_of_a_model_is_of_the_kind_that_its_name_tells(model_type: str) -> None:
    """Weights of two axes and more; and whether the class has names without a prefix."""
    name = class_names(model_type)[-1]
    model = build(model_type, name)
    types = config_types(model.config)
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not path or not isinstance(weight, generator.nn.Parameter) or weight.dim() < 2:
            continue
        usual = Kind.LINEAR if weight.dim() == 2 else Kind.CONVOLUTION
        kind = generator.kind_of(module, weight.dim())
        wanted = usual if kind == generator.USUAL else Kind(kind)
        assert kind_of(types, f"{path}.weight", weight.dim()) is wanted, path
    prefix = model.base_model_prefix
    assert is_headless([name]) == bool(prefix and not hasattr(model, prefix))


def test_the_targets_that_peft_takes_for_experts_are_known() -> None:
    """By model type, as PEFT's own tables have them."""
    peft = pytest.importorskip("peft.utils.transformers_weight_conversion")
    patterns = peft._MODEL_TO_CONVERSION_PATTERN  # noqa: SLF001
    targets = peft._MOE_TARGET_MODULE_MAPPING  # noqa: SLF001
    wanted = {
        kind: frozenset(targets[pattern])
        for kind, pattern in patterns.items()
        if pattern in targets and kind[0].islower()
    }
    assert wanted == TAKEN
