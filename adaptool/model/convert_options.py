"""What a conversion was asked to do, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.resize_options import ResizeOptions

LORA = "lora"


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The target layout, whether every module becomes LoRA factors, and at which rank.

    `rank` None: at the rank of each product, which is exact.
    """

    to: str
    as_lora: bool = False
    rank: ResizeOptions | None = None
    bake: bool = False

    @classmethod
    def of(
        cls, to: str, as_: str | None, rank: int | None, energy: float | None, *, bake: bool
    ) -> Self:
        """From flags and keywords; UsageError where they contradict each other."""
        if as_ not in (None, LORA):
            message = f"{as_!r} is not {LORA}"
            raise UsageError(message, code=Code.USAGE, field="--as")
        as_lora = LORA in (to, as_)
        truncated = rank is not None or energy is not None
        if truncated and not as_lora:
            message = "a rank is chosen only where modules are brought to LoRA form"
            hint = "add --as lora, or change the rank with adaptool resize"
            field = "--rank" if rank is not None else "--energy"
            raise UsageError(message, code=Code.USAGE, field=field, hint=hint)
        resize = ResizeOptions(rank=rank, energy=energy) if truncated else None
        return cls("peft" if to == LORA else to, as_lora, resize, bake)

    def as_json(self) -> dict[str, Any]:
        """What decides the bytes, as the receipt records it."""
        rule = dict(self.rank.rule) if self.rank is not None else {}
        return {"to": self.to, "as_lora": self.as_lora, "bake_scale": self.bake, **rule}
