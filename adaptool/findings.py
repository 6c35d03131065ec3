"""Findings: what `validate` reports, and the slugs that findings and errors share.

A slug is part of the contract: scripts match on it, so it is never renamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding matters: only an error makes `validate` fail (a warning with --strict)."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Code(StrEnum):
    """Every slug adaptool can report."""

    # safetensors container
    HEADER_TOO_SHORT = "header-too-short"
    HEADER_TRUNCATED = "header-truncated"
    HEADER_TOO_LARGE = "header-too-large"
    HEADER_NOT_UTF8 = "header-not-utf8"
    HEADER_NOT_JSON = "header-not-json"
    HEADER_NOT_OBJECT = "header-not-object"
    HEADER_GARBAGE = "header-garbage"
    HEADER_TOO_DEEP = "header-too-deep"
    HEADER_PADDED_START = "header-padded-start"
    DUPLICATE_KEY = "duplicate-key"
    METADATA_NOT_STRING = "metadata-not-string"
    TENSOR_ENTRY_MALFORMED = "tensor-entry-malformed"
    TENSOR_EXTRA_FIELD = "tensor-extra-field"
    TENSOR_NAME_UNSAFE = "tensor-name-unsafe"
    DTYPE_UNKNOWN = "dtype-unknown"
    DTYPE_NOT_COMPUTABLE = "dtype-not-computable"
    SHAPE_INVALID = "shape-invalid"
    OFFSETS_INVALID = "offsets-invalid"
    OFFSETS_OVERLAP = "offsets-overlap"
    OFFSETS_HOLE = "offsets-hole"
    TENSOR_SIZE_MISMATCH = "tensor-size-mismatch"
    DATA_TRUNCATED = "data-truncated"
    DATA_TRAILING = "data-trailing"
    NO_TENSORS = "no-tensors"
    # file kind
    NOT_FOUND = "not-found"
    NOT_REGULAR_FILE = "not-regular-file"
    NOT_READABLE = "not-readable"
    READ_FAILED = "read-failed"
    LFS_POINTER = "lfs-pointer"
    HTML_PAGE = "html-page"
    PICKLE_FILE = "pickle-file"
    FOREIGN_FORMAT = "foreign-format"
    FILE_CHANGED = "file-changed"
    PATH_UNSAFE = "path-unsafe"
    # JSON documents
    JSON_INVALID = "json-invalid"
    JSON_NOT_OBJECT = "json-not-object"
    JSON_TOO_LARGE = "json-too-large"
    JSON_TOO_DEEP = "json-too-deep"
    # recipes
    YAML_INVALID = "yaml-invalid"
    VERB_UNKNOWN = "verb-unknown"
    VARIABLE_UNSET = "variable-unset"
    STEP_ORDER = "step-order"
    OUTPUT_OUTSIDE = "output-outside"
    # adapter_config.json
    CONFIG_MISSING = "config-missing"
    FIELD_MISSING = "field-missing"
    FIELD_TYPE = "field-type"
    FIELD_VALUE = "field-value"
    FIELD_UNKNOWN = "field-unknown"
    PEFT_TYPE_UNKNOWN = "peft-type-unknown"
    TUNER_NOT_MERGEABLE = "tuner-not-mergeable"
    TUNER_UNSUPPORTED = "tuner-unsupported"
    INIT_CHANGED_BASE = "init-changed-base"
    RANK_MISMATCH = "rank-mismatch"
    RANK_EXCEEDS_SHAPE = "rank-exceeds-shape"
    ALPHA_ZERO = "alpha-zero"
    ALPHA_NEGATIVE = "alpha-negative"
    SCALING_NOT_FINITE = "scaling-not-finite"
    PATTERN_INVALID = "pattern-invalid"
    PATTERN_UNSAFE = "pattern-unsafe"
    TARGETS_FEWER_THAN_TENSORS = "targets-fewer-than-tensors"
    TARGETS_ABSENT = "targets-absent"
    BASE_REFERENCE_UNSAFE = "base-reference-unsafe"
    BIAS_MISSING = "bias-missing"
    MAGNITUDE_MISSING = "magnitude-missing"
    MODULES_TO_SAVE_MISSING = "modules-to-save-missing"
    # adapter tensors
    FACTOR_MISSING = "factor-missing"
    KEYS_UNRECOGNISED = "keys-unrecognised"
    NO_ADAPTER_TENSORS = "no-adapter-tensors"
    LAYOUT_AMBIGUOUS = "layout-ambiguous"
    SLOT_TAKEN_TWICE = "slot-taken-twice"
    FACTOR_RANKS_DIFFER = "factor-ranks-differ"
    SHAPE_MISMATCH = "shape-mismatch"
    SHAPE_AMBIGUOUS = "shape-ambiguous"
    DTYPE_NOT_FLOAT = "dtype-not-float"
    ZERO_SIZE = "zero-size"
    NOT_FINITE = "not-finite"
    ALL_ZERO = "all-zero"
    RESULT_NOT_FINITE = "result-not-finite"
    DELTA_LOST = "delta-lost"
    TENSOR_UNUSED = "tensor-unused"
    TENSOR_DROPPED = "tensor-dropped"
    # adapter against base
    MODULE_NOT_IN_BASE = "module-not-in-base"
    MODULE_SKIPPED = "module-skipped"
    MATCHED_BY_SUFFIX = "matched-by-suffix"
    BIAS_NOT_IN_BASE = "bias-not-in-base"
    TIED_WEIGHTS = "tied-weights"
    TIE_RUNTIME = "tie-runtime"
    BASE_QUANTIZED = "base-quantized"
    QLORA_BASE = "qlora-base"
    VOCAB_RESIZED = "vocab-resized"
    WEIGHT_NEEDS_ONE = "weight-needs-one"
    PEFT_QUIRK = "peft-quirk"
    BASE_NAME_DIFFERS = "base-name-differs"
    # base checkpoint
    SHARD_MISSING = "shard-missing"
    INDEX_INVALID = "index-invalid"
    INDEX_MISMATCH = "index-mismatch"
    INDEX_TOTAL_SIZE = "index-total-size"
    TENSOR_IN_TWO_SHARDS = "tensor-in-two-shards"
    STALE_WEIGHTS = "stale-weights"
    PICKLE_ONLY = "pickle-only"
    CHECKPOINT_MISSING = "checkpoint-missing"
    CUSTOM_CODE = "custom-code"
    # adapter against a runtime (validate --target)
    TARGET_REFUSED = "target-refused"
    TARGET_IGNORED = "target-ignored"
    TARGET_MIS_SCALED = "target-mis-scaled"
    TARGET_CONDITIONAL = "target-conditional"
    TARGET_UNCHECKED = "target-unchecked"
    # output and machine
    USAGE = "usage"
    OUTPUT_EXISTS = "output-exists"
    OUTPUT_IS_INPUT = "output-is-input"
    OUTPUT_OVERLAPS_INPUT = "output-overlaps-input"
    OUTPUT_NOT_WRITABLE = "output-not-writable"
    OUTPUT_PARENT_MISSING = "output-parent-missing"
    PUBLISH_WEAKER = "publish-weaker"
    DISK_FULL = "disk-full"
    FILE_TOO_LARGE = "file-too-large"
    WRITE_FAILED = "write-failed"
    OUTPUT_BUSY = "output-busy"
    STAGING_DIFFERS = "staging-differs"
    LIMIT_EXCEEDED = "limit-exceeded"
    DEVICE_MISSING = "device-missing"
    DEVICE_FAILED = "device-failed"
    OUT_OF_MEMORY = "out-of-memory"
    UNSUPPORTED = "unsupported"
    LAYOUT_CANNOT_HOLD = "layout-cannot-hold"
    NOT_LOW_RANK = "not-low-rank"
    FACTORS_AVERAGED = "factors-averaged"
    SLOW_METHOD = "slow-method"
    REPLACED_CONTRADICT = "replaced-contradict"
    BASES_DIFFER = "bases-differ"
    CARRIED_WHOLE = "carried-whole"
    BUDGET_TOO_SMALL = "budget-too-small"
    NOTHING_TO_DO = "nothing-to-do"
    WRITTEN_AS_LORA = "written-as-lora"
    DORA_DIRECTION = "dora-direction"
    INTEGRITY = "integrity"
    # the Hub
    NETWORK = "network"
    AUTHENTICATION = "authentication"
    GATED = "gated"
    OFFLINE = "offline"
    RATE_LIMITED = "rate-limited"
    REMOTE_MOVED = "remote-moved"
    SECRET_FOUND = "secret-found"  # noqa: S105 - a slug, not a password
    STRAY_FILE = "stray-file"
    # receipts
    RECEIPT_INVALID = "receipt-invalid"
    # merge --reversible and unmerge
    STORED_WHOLE = "stored-whole"
    ADAPTER_DIFFERS = "adapter-differs"
    NOT_REVERSIBLE = "not-reversible"
    INTERRUPTED = "interrupted"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation about an artifact.

    `message` names the numbers; `file`, `tensor` and `field` say where; `hint` says what to do.
    """

    code: Code
    severity: Severity
    message: str
    file: str | None = None
    tensor: str | None = None
    field: str | None = None
    hint: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """The finding as the object that `--json` prints."""
        return {
            "code": str(self.code),
            "severity": str(self.severity),
            "message": self.message,
            "file": self.file,
            "tensor": self.tensor,
            "field": self.field,
            "hint": self.hint,
        }
