"""compressed-tensors `float-quantized`: 8 bit floats as they are, with their scales.

For a module X of `out` x `in`, in blocks of h x w by the group's strategy (tensor: all of it;
channel: 1 x in; group: 1 x g; block: as it says, the last ones cut short):

    X.weight             F8_E4M3           [out, in]
    X.weight_scale       BF16 F16 F32      [ceil(out / h), ceil(in / w)]; [1] for the tensor
    X.weight_zero_point  like the codes    the same, where the group is not symmetric
    X.input_scale        BF16 F16 F32      of activations

    W[o, i] = (q[o, i] - z[o // h, i // w]) * s[o // h, i // w]      in the dtype of the scales

`naive-quantized` is the same thing. Source: compressed-tensors 0.20, `naive_quantized/base.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.compressed_groups import FLOAT, LIBRARY, SKIPPED, settings_of
from adaptool.quantizers.compressed_plain import decode_plain, packed_plain
from adaptool.quantizers.float8_encoding import Float8Encoder
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stored_parts import refuse_encoding
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SCHEME = Scheme(title="compressed-tensors float-quantized", library=LIBRARY, skip_list=SKIPPED)


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config's groups in this format; None where it has none."""
    return settings_of(config, FLOAT)


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every module in this format; InputError where its parts contradict."""
    return packed_plain(tensors, settings, FLOAT, "compressed_float")


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): they and their scales are read, and no others."""
    return decode_plain(parts, packed, start, stop)


def rewritten(packed: Packed) -> Mapping[str, tuple[int, ...]]:
    """Codes and scales; MismatchError where there are zero points."""
    if "weight_zero_point" in packed.roles:
        refuse_encoding(packed, "has zero points, which are not computed anew")
    return {role: packed.roles[role].shape for role in ("weight", "weight_scale")}


def encoder(packed: Packed) -> Float8Encoder:
    """448 over the largest magnitude that shares a scale, rounded to the scales' dtype."""
    return Float8Encoder(packed, "weight_scale")


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the modules that no group applies to."""
    return extended(config, SKIPPED, modules)
