"""cloneofsimo/lora's layout: `unet:9:up`, modules numbered in the order in which they are met.

`down` is A (r, in), `up` B (out, r); there is no alpha, the product is added as it is. The numbers
count the linear layers in CrossAttention, Attention and GEGLU of Stable Diffusion's UNet (down,
up, mid), and in CLIPAttention of its text encoder. In releases of diffusers before 0.13 a block
had its feed-forward before the second attention: shapes tell. Textual inversions stand beside.
Source: cloneofsimo/lora 0.1.7, lora_diffusion/lora.py; diffusers, unet_2d_condition.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.layouts import Evidence
from adaptool.layouts.pairs import Pairs, Roles, adapter_of
from adaptool.layouts.plain_deltas import lora_delta, matrix
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

TITLE = "cloneofsimo"
DETECT = "keys `unet:N:up`, `unet:N:down`, `text_encoder:N:up`"
LOSSY = ""
_KEY = re.compile(r"(unet|text_encoder):(\d{1,4}):(up|down)")
_ROLE = {"up": "B", "down": "A"}
# The blocks of SD 1.x and 2.x that attend, in the order of UNet2DConditionModel's attributes.
_PLACES = (
    *(f"down_blocks.{block}.attentions.{place}" for block in range(3) for place in range(2)),
    *(f"up_blocks.{block}.attentions.{place}" for block in range(1, 4) for place in range(3)),
    "mid_block.attentions.0",
)
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = "ff.net.0.proj"
_CLIP = ("k_proj", "v_proj", "q_proj", "out_proj")
_GEGLU = 8

Size = tuple[int, int]


def sniff(files: AdapterFiles) -> Evidence:
    """cloneofsimo's are `unet:N:up` and their like."""
    unclaimed = tuple(name for name in files.tensors if not _KEY.fullmatch(name))
    claimed = len(files.tensors) - len(unclaimed)
    return Evidence(claimed, unclaimed, f"{claimed} keys number the modules of unet, text_encoder")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; MismatchError where the numbered modules are not Stable Diffusion's."""
    numbered, leftover = _numbered(files)
    modules: dict[str, Roles] = {}
    for component, pairs in numbered.items():
        names = _names(component, pairs, files)
        modules |= dict(zip(names, pairs, strict=True))

    def make(name: str, roles: Roles) -> Iterator[Delta]:
        scaling = 1.0 if reading.scale is None else reading.scale
        yield lora_delta(name, {"A": roles["A"], "B": roles["B"]}, scaling)

    found = Pairs(modules, tuple(leftover))
    return adapter_of(files, reading, found, make, layout="cloneofsimo")


def _numbered(files: AdapterFiles) -> tuple[dict[str, list[Roles]], list[TensorRef]]:
    """The pairs of each component in order; InputError where one is missing."""
    found: dict[str, dict[int, dict[str, TensorRef]]] = {}
    leftover = []
    for key, ref in files.tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            leftover.append(ref)
        else:
            component, place, role = match.groups()
            found.setdefault(component, {}).setdefault(int(place), {})[_ROLE[role]] = ref
    for component, pairs in found.items():
        for place in range(max(pairs) + 1):
            if pairs.get(place, {}).keys() != {"A", "B"}:
                message = "up or down is missing: the modules are counted, so none may be"
                raise InputError(
                    message,
                    code=Code.FACTOR_MISSING,
                    file=files.source.name,
                    tensor=f"{component}:{place}",
                )
    return {
        name: [pairs[place] for place in sorted(pairs)] for name, pairs in found.items()
    }, leftover


def _names(component: str, pairs: Sequence[Roles], files: AdapterFiles) -> list[str]:
    """The module paths of one component's pairs; MismatchError where sizes do not fit them."""
    sizes = [_size(roles) for roles in pairs]
    found = _unet(sizes) if component == "unet" else _text_encoder(sizes)
    if found is None:
        message = (
            f"its {len(pairs)} modules of {component} are not the attentions of Stable Diffusion "
            f"1.x or 2.x"
        )
        hint = "modules are stored by number; convert it with the library that trained it"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=files.source.name, hint=hint)
    return [f"{component}.{name}" for name in found]


def _size(roles: Roles) -> Size:
    return matrix(roles["B"]).shape[0], matrix(roles["A"]).shape[1]


def _text_encoder(sizes: Sequence[Size]) -> list[str] | None:
    """CLIP's layers: four square projections each, in the order of CLIPAttention's attributes."""
    layers, rest = divmod(len(sizes), len(_CLIP))
    if rest or len(set(sizes)) != 1 or sizes[0][0] != sizes[0][1]:
        return None
    return [
        f"text_model.encoder.layers.{layer}.self_attn.{name}"
        for layer in range(layers)
        for name in _CLIP
    ]


def _unet(sizes: Sequence[Size]) -> list[str] | None:
    """The UNet's blocks, each by its shapes; None where they are another model's."""
    names: list[str] = []
    widths: list[int] = []
    for place in _PLACES:
        inside = _block(sizes[len(names) :])
        if inside is None:
            return None
        widths.append(sizes[len(names)][0])
        names += [f"{place}.transformer_blocks.0.{name}" for name in inside]
    one, two, three = widths[0], widths[2], widths[4]
    expected = [one, one, two, two, three, three, *[three] * 3, *[two] * 3, *[one] * 3, three]
    return names if len(names) == len(sizes) and widths == expected else None


def _block(sizes: Sequence[Size]) -> list[str] | None:
    """The modules of the block that `sizes` begin with, in the order that the sizes have."""
    width = sizes[0][0] if sizes else 0
    square, wide = (width, width), (_GEGLU * width, width)
    feed = [_FEED_FORWARD]
    first = [f"attn1.{name}" for name in _ATTENTION]
    second = [f"attn2.{name}" for name in _ATTENTION]
    shapes: Mapping[str, Size | None] = {
        **dict.fromkeys([*first, "attn2.to_q", "attn2.to_out.0"], square),
        **dict.fromkeys(["attn2.to_k", "attn2.to_v"], None),
        _FEED_FORWARD: wide,
    }
    for order in (first + feed + second, first + second + feed, first + second):
        part = sizes[: len(order)]
        if len(part) == len(order) and all(
            _fits(size, shapes[name], width) for size, name in zip(part, order, strict=True)
        ):
            return order
    return None


def _fits(size: Size, wanted: Size | None, width: int) -> bool:
    """Whether a module's (out, in) is the wanted one; keys and values have inputs of any size."""
    return size == wanted if wanted is not None else size[0] == width
