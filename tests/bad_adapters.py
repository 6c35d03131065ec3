"""Builders of bad adapters, one for each row of the table of bad inputs, for every level of tests.

Each row spoils one thing about a good adapter (rank 4, on q_proj and down_proj of both layers) or
about its base, a llama-shaped model of two layers. `exit` is what a merge of the two exits with; 0
means that it goes through, with the finding `code` where one is given.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adaptool.findings import Code
from bad_builders import header_bytes

HIDDEN, INNER, KEYS, VOCAB, LAYERS = 16, 32, 8, 24, 2
RANK, ALPHA = 4, 8
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
Q_PROJ = "model.layers.0.self_attn.q_proj"
K_PROJ = "model.layers.0.self_attn.k_proj"
DOWN_PROJ = "model.layers.0.mlp.down_proj"
EMBEDDING = "model.embed_tokens"
Q_A, Q_B = f"{PREFIX}{Q_PROJ}.lora_A.weight", f"{PREFIX}{Q_PROJ}.lora_B.weight"
_DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int8": "I8", "bool": "BOOL"}


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor whose dtype numpy does not know: its format name, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


Tensors = dict[str, Any]


@dataclass(slots=True)
class Pair:
    """A base and an adapter about to be written; a builder changes them.

    `config_text` is written instead of `config` where it is set; None for no file at all.
    """

    base: Tensors
    base_config: dict[str, Any]
    tensors: Tensors
    config: dict[str, Any]
    config_text: bytes | None = b""

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both below `folder`; returns the base's path and the adapter's."""
        base, adapter = folder / "base", folder / "adapter"
        for directory in (base, adapter):
            directory.mkdir(parents=True)
        save(base / "model.safetensors", self.base)
        (base / "config.json").write_text(json.dumps(self.base_config))
        save(adapter / WEIGHTS, self.tensors)
        if self.config_text is not None:
            text = self.config_text or json.dumps(self.config).encode()
            (adapter / CONFIG).write_bytes(text)
        return base, adapter


def save(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a safetensors file of numpy arrays and raw tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, tensor in tensors.items():
        raw = tensor if isinstance(tensor, Raw) else _raw(tensor)
        ends = [len(content), len(content) + len(raw.content)]
        header[name] = {"dtype": raw.dtype, "shape": list(raw.shape), "data_offsets": ends}
        content += raw.content
    path.write_bytes(header_bytes(header) + content)


def _raw(array: Any) -> Raw:
    return Raw(_DTYPES[str(array.dtype)], array.shape, array.tobytes())


def _random(seed: int, *shape: int) -> Any:
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype("float32")


def _linears() -> dict[str, tuple[int, int]]:
    return {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }


def good_base() -> Tensors:
    """The base's tensors, float32."""
    tensors: Tensors = {"model.embed_tokens.weight": _random(1, VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for place, (name, shape) in enumerate(_linears().items()):
            tensors[f"model.layers.{layer}.{name}.weight"] = _random(10 * layer + place, *shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(HIDDEN, "float32")
    tensors["model.norm.weight"] = np.ones(HIDDEN, "float32")
    tensors["lm_head.weight"] = _random(2, VOCAB, HIDDEN)
    return tensors


def good_base_config() -> dict[str, Any]:
    """What transformers would write for it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
    }


def lora(module: str, out: int, inner: int, rank: int = RANK) -> Tensors:
    """One module's pair of factors under PEFT's names."""
    return {
        f"{PREFIX}{module}.lora_A.weight": _random(out, rank, inner),
        f"{PREFIX}{module}.lora_B.weight": _random(inner, out, rank),
    }


def good_tensors() -> Tensors:
    """The adapter's eight tensors."""
    tensors: Tensors = {}
    for layer in range(LAYERS):
        tensors |= lora(f"model.layers.{layer}.self_attn.q_proj", HIDDEN, HIDDEN)
        tensors |= lora(f"model.layers.{layer}.mlp.down_proj", HIDDEN, INNER)
    return tensors


def good_config() -> dict[str, Any]:
    """The fields that matter, as PEFT writes them."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": "someone/tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": ALPHA,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "target_modules": ["down_proj", "q_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def good_pair() -> Pair:
    """A base and an adapter that fits it."""
    return Pair(good_base(), good_base_config(), good_tensors(), good_config())


Spoil = Callable[[Pair], None]


@dataclass(frozen=True, slots=True)
class BadAdapter:
    """One row: how to spoil the good pair, and what comes of it.

    `tensor`, `field` and the parts `says` of the message, `hint` and `file` of its file's name are
    asserted where given. `options` are merge's. `values`: validate must read values to see it.
    `only_merge`: a merge alone can see it, because of its options or because it takes arithmetic.
    """

    row: str
    spoil: Spoil
    exit: int
    code: Code | None
    tensor: str | None = None
    field: str | None = None
    says: str = ""
    hint: str = ""
    file: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    values: bool = False
    only_merge: bool = False


def with_config(**changed: Any) -> Spoil:
    """A builder that sets fields of adapter_config.json; ... takes a field away."""

    def spoil(pair: Pair) -> None:
        merged = {**pair.config, **changed}
        pair.config = {key: value for key, value in merged.items() if value is not ...}

    return spoil


def with_text(text: bytes | str | None) -> Spoil:
    """A builder that writes this for adapter_config.json; None for no file."""

    def spoil(pair: Pair) -> None:
        pair.config_text = text.encode() if isinstance(text, str) else text

    return spoil


def with_alpha_text(number: str) -> Spoil:
    """A builder whose lora_alpha is this text, which `json` would not write."""

    def spoil(pair: Pair) -> None:
        text = json.dumps({**pair.config, "lora_alpha": "HERE"})
        pair.config_text = text.replace('"HERE"', number).encode()

    return spoil


def with_tensors(**changed: Any) -> Spoil:
    """A builder that sets tensors of q_proj in layer 0, by the ending's first part; ... removes."""

    def spoil(pair: Pair) -> None:
        for name, tensor in changed.items():
            _put(pair.tensors, f"{PREFIX}{Q_PROJ}.{name}.weight", tensor)

    return spoil


def with_named(tensors: Mapping[str, Any]) -> Spoil:
    """A builder that sets tensors by their full names; ... removes."""

    def spoil(pair: Pair) -> None:
        for name, tensor in tensors.items():
            _put(pair.tensors, name, tensor)

    return spoil


def _put(tensors: Tensors, name: str, tensor: Any) -> None:
    if tensor is ...:
        del tensors[name]
    else:
        tensors[name] = tensor


def with_base_config(**changed: Any) -> Spoil:
    """A builder that sets fields of the base's config.json."""

    def spoil(pair: Pair) -> None:
        pair.base_config |= changed

    return spoil


def renamed(change: Callable[[str], str]) -> Spoil:
    """A builder that renames every tensor of the adapter."""

    def spoil(pair: Pair) -> None:
        pair.tensors = {change(name): tensor for name, tensor in pair.tensors.items()}

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """One builder after the other."""

    def spoil(pair: Pair) -> None:
        for each in spoils:
            each(pair)

    return spoil


def _without_b(pair: Pair) -> None:
    pair.tensors = {name: each for name, each in pair.tensors.items() if "lora_B" not in name}


def _config_of_17_mib(pair: Pair) -> None:
    pair.config_text = json.dumps(pair.config).encode() + b" " * (17 << 20)


def _half_precision(pair: Pair) -> None:
    pair.base = {name: tensor.astype("float16") for name, tensor in pair.base.items()}


def _overflow(pair: Pair) -> None:
    _half_precision(pair)
    with_tensors(
        lora_A=np.full((RANK, HIDDEN), 300, "float32"),
        lora_B=np.full((HIDDEN, RANK), 300, "float32"),
    )(pair)


def _mixed_floats(pair: Pair) -> None:
    pair.tensors[Q_A] = pair.tensors[Q_A].astype("float16")
    pair.tensors[Q_B] = pair.tensors[Q_B].astype("float64")


def _tied(pair: Pair) -> None:
    del pair.base["lm_head.weight"]
    pair.base_config["tie_word_embeddings"] = True
    pair.config["target_modules"] = ["down_proj", "embed_tokens", "q_proj"]
    pair.tensors |= {
        f"{PREFIX}{EMBEDDING}.lora_embedding_A": _random(3, RANK, VOCAB),
        f"{PREFIX}{EMBEDDING}.lora_embedding_B": _random(4, HIDDEN, RANK),
    }


def _float8_base(pair: Pair) -> None:
    shape = pair.base[f"{Q_PROJ}.weight"].shape
    content = bytes(shape[0] * shape[1])
    pair.base[f"{Q_PROJ}.weight"] = Raw("F8_E4M3", shape, content)


def _resized(pair: Pair) -> None:
    for name in (EMBEDDING, "lm_head"):
        pair.tensors[f"{PREFIX}{name}.weight"] = _random(5, VOCAB + 4, HIDDEN)
    pair.config["modules_to_save"] = ["embed_tokens", "lm_head"]


def _wide_rank(pair: Pair) -> None:
    rank = KEYS + 4
    pair.config["rank_pattern"] = {"k_proj": rank}
    pair.config["target_modules"] = ["down_proj", "k_proj", "q_proj"]
    pair.tensors |= lora(K_PROJ, KEYS, HIDDEN, rank)


def _convolution(pair: Pair) -> None:
    pair.base["conv.weight"] = _random(6, 8, 3, 3, 3)
    pair.tensors |= {
        f"{PREFIX}conv.lora_A.weight": _random(7, RANK, 3, 5, 5),
        f"{PREFIX}conv.lora_B.weight": _random(8, 8, RANK, 1, 1),
    }
    pair.config["target_modules"] = ["conv", "down_proj", "q_proj"]


def _dora_on_zeros(pair: Pair) -> None:
    pair.config["use_dora"] = True
    for name in list(pair.tensors):
        if name.endswith("lora_A.weight"):
            key = name.replace("lora_A.weight", "lora_magnitude_vector")
            pair.tensors[key] = np.ones(HIDDEN, "float32")
    weight = pair.base[f"{Q_PROJ}.weight"].copy()
    weight[3] = 0
    pair.base[f"{Q_PROJ}.weight"] = weight
    with_tensors(lora_B=np.zeros((HIDDEN, RANK), "float32"))(pair)


def _not_finite(value: float) -> Any:
    factor = _random(9, RANK, HIDDEN)
    factor[1, 2] = value
    return factor


def _one(row: str, exit: int, code: Code | None, spoil: Spoil, **fields: Any) -> BadAdapter:  # noqa: A002 - the field's name
    return BadAdapter(row, spoil, exit, code, **fields)


_in_config = partial(_one, file=CONFIG)
_in_tensors = partial(_one, file=WEIGHTS)
_REDOS = (
    "(.*)*$x",
    "([a-z_.0-9]+)+!",
    "(a|ab|b)*!",
    "(a?a)*!",
    "(.{0,60}){0,60}!",
    "a?" * 60 + "!",
)


def _redos() -> tuple[BadAdapter, ...]:
    fields: dict[str, Callable[[str], Any]] = {
        "target_modules": str,
        "exclude_modules": str,
        "layers_pattern": str,
        "modules_to_save": lambda expression: [expression],
        "rank_pattern": lambda expression: {expression: RANK},
        "alpha_pattern": lambda expression: {expression: ALPHA},
    }
    return tuple(
        _in_config(
            f"C22-{name}-{place}",
            3,
            Code.PATTERN_UNSAFE,
            with_config(**{name: made(expression)}),
            field=name,
        )
        for name, made in fields.items()
        for place, expression in enumerate(_REDOS)
    )


def _wrong_types(row: str, field: str, *values: Any) -> tuple[BadAdapter, ...]:
    return tuple(
        _in_config(
            f"{row}-{field}-{value}", 3, Code.FIELD_TYPE, with_config(**{field: value}), field=field
        )
        for value in values
    )


CONFIGS: tuple[BadAdapter, ...] = (
    _one("C1", 3, Code.CONFIG_MISSING, with_text(None), file="adapter"),
    _in_config("C2-syntax", 3, Code.JSON_INVALID, with_text('{"r": 4,}'), says="line 1"),
    _in_config("C2-mark", 3, Code.JSON_INVALID, with_text(b"\xef\xbb\xbf{}"), says="byte-order"),
    _in_config(
        "C2-double", 3, Code.DUPLICATE_KEY, with_text('{"r": 4, "r": 8}'), says="'r'", field="r"
    ),
    _in_config("C2-nan", 3, Code.JSON_INVALID, with_text('{"r": NaN}'), says="NaN"),
    _in_config("C3", 3, Code.JSON_NOT_OBJECT, with_text("[1, 2]")),
    # A limit is exit 7 wherever it stands.
    _in_config("C4-large", 3, Code.JSON_TOO_LARGE, _config_of_17_mib, says="16777216"),
    _in_config("C4-deep", 3, Code.JSON_TOO_DEEP, with_text('{"r":' + "[" * 70 + "]" * 70 + "}")),
    _in_config(
        "C4-endless", 3, Code.JSON_TOO_DEEP, with_text('{"r":' + "[" * 90_000 + "]" * 90_000 + "}")
    ),
    _in_config("C5", 3, Code.FIELD_MISSING, with_config(peft_type=...), field="peft_type"),
    *_wrong_types("C6", "peft_type", ["LORA"], {"LORA": 1}, 7, True),
    *_wrong_types("C6", "task_type", ["CAUSAL_LM"], {"SEQ_CLS": 1}, 7, True),
    _in_config("C6", 3, Code.PEFT_TYPE_UNKNOWN, with_config(peft_type="EVIL"), field="peft_type"),
    _in_config(
        "C7", 4, Code.TUNER_NOT_MERGEABLE, with_config(peft_type="PREFIX_TUNING"), field="peft_type"
    ),
    _in_config("C8-zero", 3, Code.FIELD_VALUE, with_config(r=0), field="r", says="is 0"),
    _in_config("C8-negative", 3, Code.FIELD_VALUE, with_config(r=-4), field="r", says="is -4"),
    *_wrong_types("C9", "r", "4", 4.0, True),
    _one("C10", 3, Code.RANK_MISMATCH, with_config(r=10**9), says="1000000000", tensor=Q_PROJ),
    _one("C11", 3, Code.RANK_MISMATCH, with_config(r=8), field="r", says="rank 8", tensor=Q_PROJ),
    _in_config("C12", 3, Code.FIELD_MISSING, with_config(r=...), field="r"),
    _in_config("C13", 3, Code.FIELD_MISSING, with_config(lora_alpha=...), field="lora_alpha"),
    *_wrong_types("C14", "lora_alpha", None, "8", True),
    _in_config("C15-nan", 3, Code.JSON_INVALID, with_alpha_text("NaN")),
    _in_config("C15-infinite", 3, Code.JSON_INVALID, with_alpha_text("Infinity")),
    _in_config("C15-overflow", 3, Code.JSON_INVALID, with_alpha_text("1e999")),
    _one(
        "C16",
        3,
        Code.SCALING_NOT_FINITE,
        with_config(lora_alpha=1e308),
        field="lora_alpha",
        says="1e+308",
    ),
    _in_config("C17", 4, Code.ALPHA_ZERO, with_config(lora_alpha=0), field="lora_alpha"),
    _in_config("C18", 0, Code.ALPHA_NEGATIVE, with_config(lora_alpha=-8), field="lora_alpha"),
    *_wrong_types("C19", "use_rslora", "false", 1),
    *_wrong_types("C19", "use_dora", "false"),
    *_wrong_types("C19", "fan_in_fan_out", "false"),
    *_wrong_types("C20", "target_modules", 7, None, [["q_proj"]], {"q_proj": 1}),
    _in_config(
        "C21-targets",
        3,
        Code.PATTERN_INVALID,
        with_config(target_modules="(q_proj"),
        field="target_modules",
        says="position 0",
    ),
    _in_config(
        "C21-ranks",
        3,
        Code.PATTERN_INVALID,
        with_config(rank_pattern={"q_proj[": 4}),
        field="rank_pattern",
    ),
    _in_config(
        "C21-flags",
        3,
        Code.PATTERN_INVALID,
        with_config(rank_pattern={"(?i)Q_proj": 4}),
        field="rank_pattern",
    ),
    *_redos(),
    _in_config(
        "C23-text",
        3,
        Code.FIELD_TYPE,
        with_config(rank_pattern={"q_proj": "4"}),
        field="rank_pattern['q_proj']",
    ),
    _in_config(
        "C23-zero",
        3,
        Code.FIELD_VALUE,
        with_config(rank_pattern={"q_proj": 0}),
        field="rank_pattern['q_proj']",
    ),
    _in_config(
        "C23-negative",
        3,
        Code.FIELD_VALUE,
        with_config(rank_pattern={"q_proj": -1}),
        field="rank_pattern['q_proj']",
    ),
    _in_config(
        "C23-alpha",
        3,
        Code.FIELD_TYPE,
        with_config(alpha_pattern={"q_proj": None}),
        field="alpha_pattern['q_proj']",
    ),
    _one(
        "C24", 0, None, with_config(rank_pattern={f"layers.{i}.absent": 4 for i in range(100_000)})
    ),
    _in_config(
        "C24-expressions",
        7,
        Code.LIMIT_EXCEEDED,
        with_config(rank_pattern={f"layers.{i}.(q|v)_proj": 4 for i in range(1001)}),
        field="rank_pattern",
        says="1001",
    ),
    _one(
        "C25",
        3,
        Code.RANK_MISMATCH,
        with_config(rank_pattern={"q_proj": 8}),
        says="rank 8",
        tensor=Q_PROJ,
    ),
    _in_config(
        "C26",
        3,
        Code.TARGETS_FEWER_THAN_TENSORS,
        with_config(target_modules=["q_proj"]),
        field="target_modules",
        tensor=DOWN_PROJ,
    ),
    _in_config(
        "C27",
        4,
        Code.TARGETS_ABSENT,
        with_config(target_modules=["down_proj", "q_proj", "v_proj"]),
        field="target_modules",
        says="'v_proj'",
    ),
    _one(
        "C27-other-family", 0, None, with_config(target_modules=["down_proj", "q_proj", "z_proj"])
    ),
    _in_config("C28", 0, Code.FIELD_UNKNOWN, with_config(my_own=1), field="my_own"),
    *(
        _in_config(
            f"C29-{place}",
            0,
            Code.BASE_REFERENCE_UNSAFE,
            with_config(base_model_name_or_path=name),
            field="base_model_name_or_path",
        )
        for place, name in enumerate(
            ("../../etc", "/etc/passwd", "https://a.example/x", "..", "a/..")
        )
    ),
    _one(
        "C30",
        0,
        None,
        with_config(auto_mapping={"base_model_class": "Popen", "parent_library": "subprocess"}),
    ),
    _one("C31", 0, None, with_config(fan_in_fan_out=True)),
    _in_tensors("C32", 3, Code.MAGNITUDE_MISSING, with_config(use_dora=True), field="use_dora"),
    _in_config("C33-all", 0, Code.BIAS_MISSING, with_config(bias="all"), field="bias"),
    _in_config("C33-lora", 0, Code.BIAS_MISSING, with_config(bias="lora_only"), field="bias"),
    _in_tensors(
        "C34",
        3,
        Code.MODULES_TO_SAVE_MISSING,
        with_config(modules_to_save=["lm_head"]),
        field="modules_to_save",
        says="'lm_head'",
    ),
)

TENSORS: tuple[BadAdapter, ...] = (
    _in_tensors("D1-a", 3, Code.FACTOR_MISSING, with_tensors(lora_B=...), tensor=Q_PROJ),
    _in_tensors("D1-b", 3, Code.FACTOR_MISSING, with_tensors(lora_A=...), tensor=Q_PROJ),
    _in_tensors("D2", 3, Code.FACTOR_MISSING, _without_b, tensor=Q_PROJ),
    _in_tensors(
        "D3",
        3,
        Code.KEYS_UNRECOGNISED,
        renamed(lambda name: name.replace(PREFIX, "my.")),
        says="0 of 8",
    ),
    _in_tensors(
        "D3-kohya",
        3,
        Code.KEYS_UNRECOGNISED,
        renamed(lambda name: "lora_unet_" + name.replace("lora_A", "lora_down")),
        says="kohya",
    ),
    _in_tensors(
        "D4-plain",
        3,
        Code.KEYS_UNRECOGNISED,
        renamed(lambda name: name.removeprefix(PREFIX).replace("lora_", "factor_")),
    ),
    _in_tensors(
        "D4-prefixed",
        3,
        Code.NO_ADAPTER_TENSORS,
        renamed(lambda name: name.replace("lora_A.weight", "weight").replace("lora_B.", "x.")),
    ),
    _in_tensors("D4-none", 3, Code.NO_ADAPTER_TENSORS, lambda pair: pair.tensors.clear()),
    _in_tensors(
        "D5",
        3,
        Code.KEYS_UNRECOGNISED,
        with_named({"lora_unet_mid_block_to_q.lora_down.weight": _random(1, RANK, HIDDEN)}),
        tensor="lora_unet_mid_block_to_q.lora_down.weight",
        says="1 of 9",
    ),
    _in_tensors(
        "D6",
        3,
        Code.SLOT_TAKEN_TWICE,
        with_named({Q_A.replace("lora_A", "lora_A.default"): _random(1, RANK, HIDDEN)}),
        tensor=Q_A.replace("lora_A", "lora_A.default"),
        says=Q_A,
    ),
    _in_tensors(
        "D7",
        3,
        Code.FACTOR_RANKS_DIFFER,
        with_tensors(lora_A=_random(1, 3, HIDDEN)),
        tensor=Q_PROJ,
        says="rank 3",
    ),
    _in_tensors(
        "D8-a",
        3,
        Code.FACTOR_RANKS_DIFFER,
        with_tensors(lora_A=_random(1, HIDDEN, RANK)),
        tensor=Q_PROJ,
        hint="transposed",
    ),
    _in_tensors(
        "D8-b",
        3,
        Code.FACTOR_RANKS_DIFFER,
        with_tensors(lora_B=_random(1, RANK, HIDDEN)),
        tensor=Q_PROJ,
        hint="transposed",
    ),
    _one(
        "D9",
        4,
        Code.SHAPE_MISMATCH,
        with_tensors(lora_A=_random(1, RANK, HIDDEN + 1)),
        tensor=Q_PROJ,
        says="16 x 17",
        file="adapter",
    ),
    _one(
        "D10",
        4,
        Code.MODULE_NOT_IN_BASE,
        with_named(lora("model.layers.9.self_attn.q_proj", HIDDEN, HIDDEN)),
        tensor="model.layers.9.self_attn.q_proj",
        file="adapter",
    ),
    _one(
        "D10-skip",
        0,
        Code.MODULE_SKIPPED,
        with_named(lora("model.layers.9.self_attn.q_proj", HIDDEN, HIDDEN)),
        says="model.layers.9.self_attn.q_proj",
        options={"skip_unmatched": True},
        only_merge=True,
    ),
    *(
        _in_tensors(
            f"D11-{value}",
            3,
            Code.NOT_FINITE,
            with_tensors(lora_A=_not_finite(value)),
            tensor=Q_A,
            says="1 of 64 values are NaN or infinite, the first at 18",
            values=True,
        )
        for value in (float("nan"), float("inf"), -float("inf"))
    ),
    *(
        _in_tensors(
            f"D12-{dtype}",
            3,
            Code.DTYPE_NOT_FLOAT,
            with_tensors(lora_A=np.ones((RANK, HIDDEN), dtype)),
            tensor=Q_A,
        )
        for dtype in ("int8", "bool")
    ),
    _one("D13", 0, None, _mixed_floats),
    _one("D14", 0, None, with_tensors(lora_A=Raw("F8_E4M3", (RANK, HIDDEN), bytes([56]) * 64))),
    _in_tensors(
        "D15-tuner",
        3,
        Code.KEYS_UNRECOGNISED,
        with_named({f"{PREFIX}{Q_PROJ}.hada_w1_a": _random(1, RANK, HIDDEN)}),
        tensor=f"{PREFIX}{Q_PROJ}.hada_w1_a",
    ),
    _in_tensors(
        "D15-stray",
        3,
        Code.KEYS_UNRECOGNISED,
        with_named({"optimizer.step": _random(1, 1)}),
        tensor="optimizer.step",
    ),
    _in_tensors(
        "D15-replaces",
        0,
        Code.KEYS_UNRECOGNISED,
        with_named({f"{PREFIX}model.norm.weight": _random(1, HIDDEN)}),
        tensor=f"{PREFIX}model.norm.weight",
    ),
    _one("D16", 0, Code.TIED_WEIGHTS, _tied, tensor=f"{EMBEDDING}.weight"),
    _one(
        "D16-error",
        4,
        Code.TIED_WEIGHTS,
        _tied,
        tensor=f"{EMBEDDING}.weight",
        options={"tie": "error"},
        only_merge=True,
    ),
    _one(
        "D16-unknown",
        4,
        Code.TIED_WEIGHTS,
        both(_tied, with_base_config(model_type="homegrown")),
        tensor=f"{EMBEDDING}.weight",
        says="homegrown",
    ),
    _one("D17", 3, Code.RESULT_NOT_FINITE, _overflow, tensor=f"{Q_PROJ}.weight", only_merge=True),
    *(
        _one(
            f"D18-{method}",
            4,
            Code.BASE_QUANTIZED,
            with_base_config(quantization_config={"quant_method": method}),
            says=method,
            file="base",
        )
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "mxfp4")
    ),
    _one("D18-unsaid", 4, Code.DTYPE_NOT_COMPUTABLE, _float8_base, tensor=f"{Q_PROJ}.weight"),
    _one("D19", 0, Code.VOCAB_RESIZED, _resized),
    _one("D20", 0, Code.RANK_EXCEEDS_SHAPE, _wide_rank, tensor=K_PROJ),
    _one("D21", 4, Code.SHAPE_MISMATCH, _convolution, tensor="conv", file="adapter"),
    _in_tensors(
        "D22-rank",
        3,
        Code.ZERO_SIZE,
        with_tensors(lora_A=_random(1, 0, HIDDEN), lora_B=_random(1, HIDDEN, 0)),
        tensor=Q_A,
    ),
    _in_tensors(
        "D22-width", 3, Code.ZERO_SIZE, with_tensors(lora_A=_random(1, RANK, 0)), tensor=Q_A
    ),
    _one("D23", 3, Code.RESULT_NOT_FINITE, _dora_on_zeros, only_merge=True),
)
