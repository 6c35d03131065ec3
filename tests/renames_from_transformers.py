"""Generates adaptool/names/renames.json from the installed transformers.

    python tests/renames_from_transformers.py [OUT]

What it reads is public behaviour of transformers 5: `conversion_mapping` (the rules by model type
or class name), and for each model class which submodules the rules are scoped to. Models are
built on the meta device from their default configs, cut down to a few layers.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, conversion_mapping
from transformers.models.auto import configuration_auto, modeling_auto

TABLE = Path(__file__).parents[1] / "adaptool" / "names" / "renames.json"
LAYERS = 4
_COUNTS = re.compile(
    r"(num_(hidden_|encoder_|decoder_)?layers|n_layers?|(encoder|decoder)_layers|num_blocks|depth"
    r"|(vision|audio|text)_?(n_|num_)?layers|vision_depth|num_hidden_groups|encoder_num_layers"
    r"|decoder_num_layers|encoder_num_hidden_layers|num_nextn_predict_layers|n_layer)"
)
_PER_LAYER = re.compile(
    r"(layer|layers|block|mlp|attention|attn).*(types?|pattern|list)|.*_layer_.*"
)
_LIMITS = {"first_k_dense_replace": 1, "moe_layer_start_index": 1, "num_dense_layers": 1}

# A wrapper around models of other types, listed under each: it has a type of its own.
_AT_HOME = {"JevForDecision": "jev"}

# What a default config leaves out or leaves to a package that need not be installed.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_RESNET = {"model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_INDEXER = {"n_heads": 4, "kv_heads": 4, "head_dim": 64, "budget": 64, "compress_ratio": 4}
_SETTINGS: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 8, "context_length": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "hiera": {"decoder_hidden_size": 64, "decoder_depth": 1, "decoder_num_heads": 1},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_vl_text": {"head_dim": 64},
    "informer": {"prediction_length": 8, "context_length": 8},
    "ministral": {"head_dim": 64},
    "nemotron": {"num_key_value_heads": 8},
    "perceiver": {"num_cross_attention_heads": 1, "num_self_attention_heads": 1},
    "time_series_transformer": {"prediction_length": 8, "context_length": 8},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "aya_vision": {"vision_config.num_attention_heads": 16},
    "beit": {
        "_out_indices": [1, 2, 3, 4],
        "_out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "cohere_compass": {"text_config.rope_parameters": {"full_attention": _ROPE}},
    "conditional_detr": {"backbone_config": _RESNET},
    "dab-detr": {"backbone_config": _RESNET},
    "dbrx": {"attn_config.rope_theta": 10000.0},
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", *["sparse"] * (LAYERS - 1)]},
    "deformable_detr": {"backbone_config": _RESNET},
    "detr": {"backbone_config": _RESNET},
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 64,
    },
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "emu3": {"vocabulary_map": {"<image>": 1, "<|extra_200|>": 2}},
    "esm": {"vocab_size": 33},
    "granite4_vision": {"deepstack_layer_map": [[0, 1], [1, 2]], "downsample_rate": "4/8"},
    "hunyuan_v1_moe": {"head_dim": 64},
    "hunyuan_vl": {"text_config.head_dim": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "perception_lm": {"vision_config.model_args": {"embed_dim": 64}},
    "qwen3_omni_moe": {
        "talker_config.text_config.shared_expert_intermediate_size": 64,
        "talker_config.spatial_merge_size": 2,
    },
    "qwen4_exp": {f"text_config.indexer_{key}": value for key, value in _INDEXER.items()},
    "qwen4_exp_text": {f"indexer_{key}": value for key, value in _INDEXER.items()},
    "table-transformer": {"backbone_config": _RESNET},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    "sapiens2": {"head_config": {"upsample_out_channels": [8, 8], "conv_out_channels": [8]}},
}


# --- configs and models -------------------------------------------------------------------------


def model_types() -> list[str]:
    """Every model type transformers knows."""
    return sorted(configuration_auto.CONFIG_MAPPING_NAMES)


def class_names(model_type: str) -> list[str]:
    """The model classes of a type in all auto mappings, the headless one first."""
    tables = [modeling_auto.MODEL_MAPPING_NAMES]
    tables += [
        table
        for name, table in sorted(vars(modeling_auto).items())
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")
    ]
    found: dict[str, None] = {}
    for table in tables:
        names = table.get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            found[name] = None
    return [name for name in found if name and _AT_HOME.get(name, model_type) == model_type]


def model_class(model_type: str, name: str) -> type[PreTrainedModel] | None:
    """The class of that name; None where it cannot be imported here."""
    module = configuration_auto.model_type_to_module_name(model_type)
    for path in (f"transformers.models.{module}", "transformers"):
        try:
            found = getattr(importlib.import_module(path), name, None)
        except ImportError:
            continue
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return None


def _cut(body: dict[str, Any]) -> dict[str, Any]:
    layers = {value for key, value in body.items() if _COUNTS.fullmatch(key)}
    cut: dict[str, Any] = {}
    for key, value in body.items():
        if isinstance(value, dict) and "model_type" in value:
            cut[key] = _cut(value)
        elif _COUNTS.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool):
            cut[key] = min(value, LAYERS)
        elif isinstance(value, list) and len(value) in layers and _PER_LAYER.fullmatch(key):
            cut[key] = value[:LAYERS]
        elif key in _LIMITS and isinstance(value, int):
            cut[key] = min(value, _LIMITS[key])
        else:
            cut[key] = value
    return cut


def configs(model_type: str) -> Iterator[Any]:
    """The default config of a type: cut down, then as it is."""
    kind = configuration_auto.CONFIG_MAPPING[model_type]
    with contextlib.suppress(Exception):  # any refusal of the cut config: use the whole one
        yield _completed(model_type, kind.from_dict(_cut(kind().to_dict())))
    yield _completed(model_type, kind())


def _completed(model_type: str, config: Any) -> Any:
    for path, value in _SETTINGS.get(model_type, {}).items():
        owner = config
        *parents, field = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        if isinstance(value, dict) and "model_type" in value:
            own = dict(value)
            value = configuration_auto.CONFIG_MAPPING[own.pop("model_type")](**own)  # noqa: PLW2901
        elif isinstance(value, dict) and field in type(owner).sub_configs:
            value = type(owner).sub_configs[field](**value)  # noqa: PLW2901
        setattr(owner, field, value)
    return config


def config_types(config: Any) -> list[str]:
    """The model type of a config and those of its sub-configs, outermost first."""
    found = [config.model_type] if config.model_type else []
    for field in type(config).sub_configs:
        if (inner := getattr(config, field, None)) is not None:
            found += config_types(inner)
    return found


def config_for(kind: type[PreTrainedModel], config: Any) -> Any:
    """The config or the sub-config that a class takes: Llama4TextModel takes the text config."""
    wanted = kind.config_class
    if wanted is None or isinstance(config, wanted):
        return config
    for field in type(config).sub_configs:
        if isinstance(getattr(config, field, None), wanted):
            return getattr(config, field)
    return config


def _stand_in_for_timm(*_: Any, **__: Any) -> torch.nn.Module:
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Linear(8, 8))
    body.feature_info = None
    return body


def lend_timm() -> None:
    """Let models with a timm tower be built without timm: a small body stands in for the tower."""
    package = importlib.import_module("transformers.models.timm_wrapper")
    module = importlib.import_module("transformers.models.timm_wrapper.modeling_timm_wrapper")
    module._create_timm_model_with_error_handling = _stand_in_for_timm  # noqa: SLF001
    module.requires_backends = lambda *_: None
    for name in ("TimmWrapperModel", "TimmWrapperForImageClassification"):
        setattr(package, name, getattr(module, name))
        setattr(transformers, name, getattr(module, name))


def build(model_type: str, name: str) -> PreTrainedModel:
    """A meta-device model of the class `name`; raises what transformers raises."""
    kind = model_class(model_type, name)
    if kind is None:
        message = f"class {name} cannot be imported"
        raise ImportError(message)
    failure: Exception | None = None
    for config in configs(model_type):
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return kind(config_for(kind, config))
        except Exception as error:  # noqa: BLE001 - the next config may do
            failure = failure or error
    assert failure is not None
    raise failure


# --- rules --------------------------------------------------------------------------------------


def _source_regex(sources: list[str]) -> str:
    # As WeightTransform.__init__ writes it, so that the comparison below can hold it to that.
    branches = []
    for number, source in sorted(enumerate(sources), key=lambda item: -len(item[1])):
        pattern = source.replace("*.", r".*\.")
        if re.search(r"[a-zA-Z0-9]$", pattern):
            pattern += r"(?!\w)"
        branches.append(f"(?P<g{number}>{pattern})")
    return "|".join(branches)


def _with_stars(transform: Any) -> str:
    """The compiled pattern, with the run that `*` stands for in a group s0, s1, ..."""
    pattern = _source_regex(transform.source_patterns)
    assert pattern == transform.compiled_sources.pattern, transform
    for number, source in enumerate(transform.source_patterns):
        if "*." in source:
            assert source.count("*.") == 1, transform
            assert "(" not in source, transform
            head = f"(?P<g{number}>"
            start = pattern.index(head)
            star = pattern.index(r".*\.", start)
            pattern = f"{pattern[:star]}(?P<s{number}>.*)\\.{pattern[star + 4 :]}"
    return pattern


def _form(transform: Any) -> dict[str, Any]:  # noqa: C901, PLR0912 - one case for each operation
    """How the targets are made of the sources, from the operations."""
    operations = transform.operations
    kinds = [type(operation).__name__ for operation in operations]
    form: dict[str, Any] = {}
    match kinds:
        case ["MergeModulelist"]:
            form["stack"] = operations[0].dim
        case ["MergeModulelist", "Concatenate"]:
            form.update(stack=operations[0].dim, join=operations[1].dim)
        case ["Concatenate"]:
            form["join"] = operations[0].dim
        case ["Chunk"]:
            form["split"] = operations[0].dim
        case ["Chunk", "PermuteForRope"]:
            form["split"] = operations[0].dim
            names = operations[1].permute_layer_names
            form["refused"] = {
                str(number): "PermuteForRope"
                for number, target in enumerate(transform.target_patterns)
                if names is None or any(name in target for name in names)
            }
        case ["PermuteForRope"]:
            form["refused"] = {"0": "PermuteForRope"}
        case ["Split"]:
            form["split"] = operations[0].dim
            form["refused"] = {str(n): "Split" for n in range(len(transform.target_patterns))}
        case ["Interleave"]:
            assert not operations[0].inverse
            form["unweave"] = operations[0].dim
        case ["Interleave", "Chunk"]:
            assert not operations[0].inverse
            assert operations[0].dim == operations[1].dim
            assert len(transform.target_patterns) == 2
            form.update(split=operations[0].dim, interleaved=True)
        case ["Transpose"]:
            axes = (operations[0].dim0, operations[0].dim1)
            assert axes in ((0, 1), (1, 2)), transform
            form["transposed"] = "by-shape" if operations[0].check_dims else "yes"
        case ["ErnieFuseAndSplitTextVisionExperts"]:
            form.update(stack=operations[0].stack_dim, shared=True)
            if len(transform.source_patterns) > 1:
                form["join"] = operations[0].concat_dim
        case _:
            message = f"no form for the operations {kinds} of {transform}"
            raise NotImplementedError(message)
    return form


def _rule(transform: Any) -> dict[str, Any]:
    rule: dict[str, Any] = {"from": _with_stars(transform), "to": transform.target_patterns}
    # Reading.reach_all holds names that differ in indices above 9 for alike.
    assert not re.search(r"\.\d{2,}(?!\w)|\{", rule["from"]), transform
    match type(transform).__name__:
        case "WeightConverter":
            rule["form"] = _form(transform)
        case "GroupWeightRename":
            rule["group"] = True
        case "Inkling2IndexOffsetWeightRename":
            rule["offset"] = transform.offset
        case "WeightRenaming" | "PrefixChange":
            pass
        case other:
            message = f"no rule for a {other}"
            raise NotImplementedError(message)
    return rule


def rules() -> dict[str, Any]:
    """Rules by key (model type or class name); a string names the key with the same rules."""
    table: dict[str, Any] = {}
    first: dict[str, str] = {}
    for key in sorted(conversion_mapping._build_checkpoint_conversion_mapping()):  # noqa: SLF001
        transforms = conversion_mapping.get_checkpoint_conversion_mapping(key)
        own = [_rule(transform) for transform in transforms or ()]
        text = json.dumps(own)
        table[key] = own if first.setdefault(text, key) == key else first[text]
    return table


# --- recipes ------------------------------------------------------------------------------------


def _keys_of(model: PreTrainedModel) -> list[tuple[str, str]]:
    """(module path, rule key) in the order transformers applies them to `model`."""
    asked: list[str] = []
    original = conversion_mapping.get_checkpoint_conversion_mapping

    def recorded(key: str) -> Any:
        found = original(key)
        if found is not None and key != "legacy":
            asked.append(key)
            for transform in found:
                transform.layer_targets["from"] = {key}
        return found

    conversion_mapping.get_checkpoint_conversion_mapping = recorded
    try:
        transforms = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    finally:
        conversion_mapping.get_checkpoint_conversion_mapping = original
    found: dict[tuple[str | None, str], None] = {}
    for transform in transforms:
        (key,) = transform.layer_targets["from"]
        found[transform.scope_prefix, key] = None
    return [("." if scope is None else scope, key) for scope, key in found]


def _slots(model: PreTrainedModel) -> list[tuple[str, str]]:
    """(scope, model type) of each submodel whose type the config leaves open."""
    slots = {}
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        for field, kind in getattr(type(config), "sub_configs", {}).items():
            if not isinstance(module, PreTrainedModel) or kind is not AutoConfig:
                continue
            for name, child in module.named_modules():
                same = getattr(child, "config", None) is getattr(config, field, None)
                if name and isinstance(child, PreTrainedModel) and same:
                    full = f"{path}.{name}" if path else name
                    scope = full.removeprefix(model.base_model_prefix).removeprefix(".")
                    slots[scope] = child.config.model_type
                    break
    return sorted(slots.items())


def _concerned(model_type: str, names: list[str], keys: set[str]) -> bool:
    """Whether a rule can apply to a model of this type: else there is no need to build it."""
    kind = configuration_auto.CONFIG_MAPPING[model_type]
    if model_type in keys or set(names) & keys or getattr(kind, "sub_configs", None):
        return True
    found = model_class(model_type, names[0]) if names else None
    if found is None:
        return False
    module = sys.modules[found.__module__]
    return any(key in vars(module) for key in keys)


def recipes(failures: dict[str, str] | None = None) -> dict[str, Any]:
    """By model type: the distinct recipes of its classes and their base prefixes."""
    keys = set(conversion_mapping._build_checkpoint_conversion_mapping())  # noqa: SLF001
    table: dict[str, Any] = {}
    for model_type in model_types():
        names = class_names(model_type)
        kinds = [model_class(model_type, name) for name in names]
        prefixes = sorted({kind.base_model_prefix for kind in kinds if kind} - {""})
        own: list[dict[str, Any]] = []
        if _concerned(model_type, names, keys):
            own = _own_recipes(model_type, names, failures)
        table[model_type] = (
            {"prefixes": prefixes, "recipes": own} if own else {"prefixes": prefixes}
        )
    return table


def _own_recipes(
    model_type: str, names: list[str], failures: dict[str, str] | None
) -> list[dict[str, Any]]:
    own: list[dict[str, Any]] = []
    for name in names:
        try:
            model = build(model_type, name)
        except Exception as error:  # noqa: BLE001 - recorded: the sweep lists what cannot be built
            if failures is not None:
                failures[f"{model_type}:{name}"] = f"{type(error).__name__}: {error}"[:200]
            continue
        recipe: dict[str, Any] = {"base": model.base_model_prefix, "apply": _keys_of(model)}
        if slots := _slots(model):
            recipe.update(slots=slots, inner=sorted(set(config_types(model.config)[1:])))
        same = next((other for other in own if _without_classes(other) == recipe), None)
        if same is not None:
            same["classes"].append(name)
        else:
            own.append({"classes": [name], **recipe})
    return own if any(each["apply"] or "slots" in each for each in own) else []


def _without_classes(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "classes"}


def table(failures: dict[str, str] | None = None) -> dict[str, Any]:
    """The whole content of renames.json."""
    lend_timm()
    return {
        "transformers": transformers.__version__,
        "rules": rules(),
        "models": recipes(failures),
    }


def rendered(content: dict[str, Any]) -> str:
    """The text of renames.json: one line for each key, so that a diff is readable."""
    lines = []
    for section, body in content.items():
        if isinstance(body, dict):
            rows = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(body.items())]
            lines.append(f"{json.dumps(section)}: {{\n" + ",\n".join(rows) + "\n}")
        else:
            lines.append(f"{json.dumps(section)}: {json.dumps(body)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Write the table."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    failures: dict[str, str] = {}
    transformers.logging.set_verbosity_error()
    out.write_text(rendered(table(failures)), encoding="utf-8")
    for name, reason in failures.items():
        sys.stdout.write(f"{name}: {reason}\n")


if __name__ == "__main__":
    main()
