"""The renames of adaptool.names against transformers' own saving code."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from adaptool.names.renames import (
    CheckpointNames,
    Part,
    Placement,
    checkpoint_placements,
    module_names,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.23")

from transformers import core_model_loading as loading  # noqa: E402
from transformers import modeling_utils  # noqa: E402
from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: E402

import renames_from_transformers as generator  # noqa: E402

ORDINARY = [
    "bert",
    "clip",
    "deepseek_v3",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "llama",
    "llava",
    "mixtral",
    "opt",
    "qwen2",
    "qwen3_moe",
    "qwen3_vl_moe",
    "t5",
    "vit",
]

# Model classes that cannot be built from a default config, and why.
UNBUILDABLE = {
    "dinat:DinatBackbone": "needs natten",
    "dinat:DinatForImageClassification": "needs natten",
    "dinat:DinatModel": "needs natten",
    "gemma4_assistant:Gemma4AssistantForCausalLM": "its default config refuses itself",
    "gemma4_unified_assistant:Gemma4UnifiedAssistantForCausalLM": "so does its default config",
    "higgs_audio_v2_tokenizer:HiggsAudioV2TokenizerModel": "cannot be imported",
    "layoutlmv2:LayoutLMv2ForQuestionAnswering": "needs detectron2",
    "layoutlmv2:LayoutLMv2ForSequenceClassification": "needs detectron2",
    "layoutlmv2:LayoutLMv2ForTokenClassification": "needs detectron2",
    "layoutlmv2:LayoutLMv2Model": "needs detectron2",
    "omdet-turbo:OmDetTurboForObjectDetection": "needs timm, and takes no other backbone",
    "pp_ocrv5_server_det:PPOCRV5ServerDetForObjectDetection": "block sizes have no default",
    "pp_ocrv6_medium_det:PPOCRV6MediumDetForObjectDetection": "block sizes have no default",
    "pp_ocrv6_medium_det:PPOCRV6MediumDetModel": "block sizes have no default",
    "reformer:ReformerModelWithLMHead": "takes a decoder config, its siblings do not",
    "t5gemma:T5GemmaEncoderModel": "takes an encoder-only config",
    "timm_backbone:TimmBackbone": "needs timm",
    "voxtral_realtime_text:VoxtralRealtimeTextModel": "cannot be imported",
}

# Operations that are no index map from names alone: the placement says so.
REFUSED = {
    "gradium_phonon_tts": "PermuteForRope",
    "kimi_k25": "PermuteForRope",
    "mistral_large4": "PermuteForRope",
    "molmo2": "Split",
    "molmo2_text": "Split",
    "step3p7": "PermuteForRope",
}

# With every prefix change reverted at once, transformers writes names it cannot load itself.
NO_PREFIXED_CHECKPOINT = {
    "qwen2_5_omni",
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe",
    "qwen3_omni_moe_thinker",
}

type_names = generator.model_types()


# --- what transformers would save ---------------------------------------------------------------


def _stand_in(number: int, parameter: Any) -> Any:
    """A small tensor with as many axes as the parameter and values of its own."""
    shapes = {0: (), 1: (24,), 2: (24, 12), 3: (12, 24, 8)}
    shape = shapes.get(parameter.ndim, (24,) + (2,) * (parameter.ndim - 1))
    return torch.arange(torch.Size(shape).numel()).reshape(shape) + 1_000_000 * number


def _state(model: Any) -> dict[str, Any]:
    """What save_pretrained would revert: no ignored names, one name for each tied weight."""
    state = model.state_dict()
    shared: dict[int, list[str]] = {}
    for name in list(state):
        ignored = model._keys_to_ignore_on_save or ()  # noqa: SLF001 - as save_pretrained does
        if name in ignored or not hasattr(state[name], "ndim"):
            del state[name]
        else:
            shared.setdefault(id(model.get_parameter_or_buffer(name)), []).append(name)
    tied = list(modeling_utils._get_tied_weight_keys(model))  # noqa: SLF001 - as save_pretrained does
    for names in shared.values():
        untied = [n for n in names if not any(re.search(pattern, n) for pattern in tied)]
        kept = (untied or names)[0]
        for name in names:
            if name != kept:
                del state[name]
    return {name: _stand_in(number, state[name]) for number, name in enumerate(state)}


def _two_heads(config: Any) -> None:
    # PermuteForRope divides by the heads; the stand-ins are 24 rows high.
    if isinstance(vars(config).get("num_attention_heads"), int):
        config.num_attention_heads = 2
    for field in type(config).sub_configs:
        if (inner := getattr(config, field, None)) is not None:
            _two_heads(inner)


def _saved(model: Any, state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The checkpoint of a fresh model, then of one that was loaded with its old prefixes."""
    yield loading.revert_weight_conversion(model, dict(state))
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    prefixed = any(isinstance(rule, loading.PrefixChange) for rule in conversions)
    if prefixed and model.config.model_type not in NO_PREFIXED_CHECKPOINT:
        model._weight_conversions = conversions  # noqa: SLF001 - as loading leaves it
        yield loading.revert_weight_conversion(model, dict(state))


# --- what the placements say --------------------------------------------------------------------


def _index(shape: Sequence[int], parts: Sequence[Part]) -> tuple[Any, ...]:
    index: list[Any] = [slice(None)] * len(shape)
    for part in parts:
        size = shape[part.axis] // (part.count or 1)
        if part.dropped:
            index[part.axis] = part.index
        elif part.interleaved:
            index[part.axis] = slice(part.index, None, part.count)
        else:
            index[part.axis] = slice(part.index * size, (part.index + 1) * size)
    return tuple(index)


def _rebuilt(placements: Sequence[Placement], saved: Mapping[str, Any], like: Any) -> Any:
    """The module parameter, put together from the checkpoint as the placements say."""
    parameter = torch.full_like(like, -1)
    for placement in placements:
        tensor = saved[placement.tensor]
        piece = tensor[_index(tensor.shape, placement.of_tensor)]
        place = _index(parameter.shape, placement.of_parameter)
        differs = piece.shape != parameter[place].shape
        if placement.transposed or (placement.transposed_by_shape and differs):
            piece = piece.transpose(-1, -2)
        if piece.shape != parameter[place].shape:
            return None
        parameter[place] = piece
    return parameter


def _faults(
    kinds: Sequence[str], state: Mapping[str, Any], saved: Mapping[str, Any]
) -> Iterator[str]:
    """Everything that is wrong with the placements of one model's parameters."""
    checkpoint = CheckpointNames(saved, kinds)
    unused = set(saved)
    for name, parameter in state.items():
        placements = checkpoint.placements(name)
        unused -= {placement.tensor for placement in placements}
        refused = {placement.unsupported for placement in placements} - {None}
        if not placements:
            yield f"{name}: not found"
        elif refused:
            if refused != {REFUSED.get(kinds[0])}:
                yield f"{name}: refused for {refused}"
        elif not _equal(_rebuilt(placements, saved, parameter), parameter):
            yield f"{name}: {placements[:2]} is not the parameter"
        else:
            for placement in placements:
                if name not in module_names(kinds, placement.tensor):
                    yield f"{placement.tensor}: {name} is not among its module names"
    yield from (f"{name}: belongs to no parameter" for name in sorted(unused))


def _equal(rebuilt: Any, parameter: Any) -> bool:
    return rebuilt is not None and torch.equal(rebuilt, parameter)


def _faults_of_model(model: Any) -> list[str]:
    kinds = generator.config_types(model.config)
    state = _state(model)
    _two_heads(model.config)
    return [fault for saved in _saved(model, state) for fault in _faults(kinds, state, saved)]


def _faults_of_type(model_type: str, unbuilt: dict[str, str]) -> list[str]:
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in generator.class_names(model_type):
            try:
                model = generator.build(model_type, name)
            except Exception as error:  # noqa: BLE001 - transformers raises what it likes
                unbuilt[f"{model_type}:{name}"] = repr(error)[:200]
                continue
            faults += [f"{name}: {fault}" for fault in _faults_of_model(model)[:5]]
    return faults


@pytest.fixture(autouse=True, scope="module")
def _timm() -> None:
    generator.lend_timm()
    transformers.logging.set_verbosity_error()


# --- the laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ORDINARY)
def test_every_parameter_is_found_where_transformers_saves_it(model_type: str) -> None:
    """All classes of an ordinary type: every value is found, no tensor is left, and back."""
    unbuilt: dict[str, str] = {}
    assert _faults_of_type(model_type, unbuilt) == []
    assert unbuilt == {}


@pytest.mark.slow
def test_every_parameter_of_every_model_type_is_found_where_transformers_saves_it() -> None:
    """The same for all types; the classes that cannot be built are exactly the listed ones."""
    unbuilt: dict[str, str] = {}
    assert [fault for name in type_names for fault in _faults_of_type(name, unbuilt)] == []
    assert unbuilt.keys() == UNBUILDABLE.keys()


@pytest.mark.slow
def test_the_table_is_what_the_generator_writes() -> None:
    """renames.json is generated from the installed transformers and not edited."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert generator.TABLE.read_text() == generator.rendered(generator.table())


def test_the_rules_are_those_of_the_installed_transformers() -> None:
    """The fast part of the law above: the rules, without the models they apply to."""
    written = json.loads(generator.TABLE.read_text())
    assert written["transformers"] == transformers.__version__
    assert written["rules"] == generator.rules()


@pytest.mark.parametrize(
    ("outer", "field", "inner"),
    [
        ("llava", "text_config", "mixtral"),
        ("llava", "vision_config", "siglip_vision_model"),
        ("vision-encoder-decoder", "encoder", "swin"),
        ("vision-encoder-decoder", "encoder", "deit"),
    ],
)
def test_a_tower_of_another_type_keeps_its_renames(outer: str, field: str, inner: str) -> None:
    """A composite whose tower is not the default one applies the rules of that tower's type."""
    kinds = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    settings = {field: kinds[inner]()}
    if outer == "vision-encoder-decoder":
        settings["decoder"] = kinds["bert"](is_decoder=True, add_cross_attention=True)
    config = kinds[outer](**settings)
    kind = generator.model_class(outer, generator.class_names(outer)[-1])
    assert kind is not None
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(config)
    assert inner in generator.config_types(config)
    assert _faults_of_model(model) == []


# --- single facts -------------------------------------------------------------------------------

EXPERTS = [
    f"model.layers.0.block_sparse_moe.experts.{expert}.{matrix}.weight"
    for expert in range(3)
    for matrix in ("w1", "w2", "w3")
]


def test_stacked_experts_lie_in_one_tensor_for_each_expert() -> None:
    """Mixtral's gate_up_proj is w1 over w3 for each expert, its down_proj w2."""
    found = checkpoint_placements(["mixtral"], "model.layers.0.mlp.experts.gate_up_proj", EXPERTS)
    first = "model.layers.0.block_sparse_moe.experts.1."
    stack = Part(0, 1, 3, dropped=True)
    assert len(found) == 6
    assert Placement(first + "w1.weight", (stack, Part(1, 0, 2))) in found
    assert Placement(first + "w3.weight", (stack, Part(1, 1, 2))) in found


@pytest.mark.parametrize("missing", ["experts.1.w3", "experts.2.w1", "experts.0.w1"])
def test_a_stack_with_a_missing_piece_is_not_found(missing: str) -> None:
    """All pieces or nothing."""
    names = [name for name in EXPERTS if missing not in name]
    parameter = "model.layers.0.mlp.experts.gate_up_proj"
    assert checkpoint_placements(["mixtral"], parameter, names) == ()


def test_an_expert_of_an_old_adapter_is_a_slice_of_a_stacked_checkpoint() -> None:
    """A transformers 4 key on a checkpoint that holds the stack itself."""
    stacked = "model.layers.0.mlp.experts.gate_up_proj"
    parts = (Part(0, 2, 0, dropped=True), Part(1, 1, 2))
    found = checkpoint_placements(["mixtral"], EXPERTS[-1], [stacked])
    assert found == (Placement(stacked, of_tensor=parts),)


def test_a_fused_key_of_an_adapter_lies_in_the_split_tensors() -> None:
    """A RADIO attn.qkv on a checkpoint with q, k and v apart."""
    prefix = "radio_model.model.blocks.0."
    (fused,) = [f"{prefix}attn.qkv.weight"]
    split = [name for name in module_names(["radio"], fused) if "_proj" in name]
    found = checkpoint_placements(["radio"], fused, split)
    assert [placement.of_parameter for placement in found] == [
        (Part(0, index, 3),) for index in range(3)
    ]


def test_a_stack_that_may_be_transposed_is_told_by_its_shape() -> None:
    """Qwen3-VL-MoE keeps the name and swaps the axes of older checkpoints."""
    name = "model.language_model.layers.0.mlp.experts.down_proj"
    found = checkpoint_placements(["qwen3_vl_moe"], name, [name])
    assert found == (Placement(name, transposed_by_shape=True),)


@pytest.mark.parametrize(
    ("names", "tensor"),
    [
        (["vision_tower.encoder.blocks.0.norm0.weight"], 0),
        (["model.vision_tower.layers.0.norm1.weight"], 0),
    ],
)
def test_renames_that_chain_apply_only_to_a_checkpoint_in_the_old_form(
    names: list[str], tensor: int
) -> None:
    """Kimi's norm0 becomes norm1; where there is no norm0, norm1 is norm1 already."""
    found = checkpoint_placements(["kimi_k25"], "model.vision_tower.layers.0.norm1.weight", names)
    assert found == (Placement(names[tensor]),)


@pytest.mark.parametrize(
    ("parameter", "tensor"),
    [
        ("bert.encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"),
        ("encoder.layer.0.output.dense.weight", "bert.encoder.layer.0.output.dense.weight"),
    ],
)
@pytest.mark.parametrize("kinds", [["bert"], []])
def test_a_base_prefix_may_be_missing_on_either_side(
    parameter: str, tensor: str, kinds: list[str]
) -> None:
    """A checkpoint of the headless model, or an adapter of it."""
    assert checkpoint_placements(kinds, parameter, [tensor]) == (Placement(tensor),)


def test_two_prefixes_that_fit_find_nothing() -> None:
    """A guess between two tensors is no answer."""
    names = ["bert.encoder.x.weight", "model.encoder.x.weight"]
    assert checkpoint_placements([], "encoder.x.weight", names) == ()


def test_an_unknown_model_type_renames_nothing() -> None:
    """Custom code has its own names."""
    assert module_names(["not_a_model"], EXPERTS[0]) == (EXPERTS[0],)
    assert checkpoint_placements(["not_a_model"], EXPERTS[0], EXPERTS) == (Placement(EXPERTS[0]),)


def test_indices_of_any_length_are_told_apart() -> None:
    """Names that differ in large indices share the work, not the answer."""
    names = [name.replace("layers.0", f"layers.{layer}") for layer in range(12) for name in EXPERTS]
    names += [f"model.layers.900000.block_sparse_moe.experts.{e}.w2.weight" for e in range(11)]
    checkpoint = CheckpointNames(names, ["mixtral"])
    for layer, count in ((1, 3), (11, 3), (900000, 11)):
        found = checkpoint.placements(f"model.layers.{layer}.mlp.experts.down_proj")
        assert [placement.tensor for placement in found] == [
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"
            for expert in range(count)
        ]


@pytest.mark.parametrize("index", ["1000000", "01", "-1", "", "1.1", "٣"])
def test_an_index_that_is_no_plain_number_is_no_expert(index: str) -> None:
    """Names come from untrusted files."""
    names = [f"model.layers.0.block_sparse_moe.experts.{i}.w2.weight" for i in ("0", index)]
    found = checkpoint_placements(["mixtral"], "model.layers.0.mlp.experts.down_proj", names)
    assert all(placement.tensor == names[0] for placement in found)
