"""The flags that several commands share, defined once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from adaptool.cli import summaries, values
from adaptool.model.options import ExpertPacking, OutputDtype, Precision, QloraBase, Quantized, Tie

F = TypeVar("F", bound=Callable[..., Any])

Choices = type[ExpertPacking | OutputDtype | Precision | QloraBase | Quantized | Tie]

_JSON = "adaptool.json"
_QUIET = "adaptool.quiet"


def _remembered(key: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[key] = value

    return remember


def is_json(context: click.Context) -> bool:
    """Whether --json was given."""
    return bool(context.meta.get(_JSON))


def is_quiet(context: click.Context) -> bool:
    """Whether --quiet was given."""
    return bool(context.meta.get(_QUIET))


def _stacked(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def output(command: F) -> F:
    """--json, --quiet and --summary: for whoever tells the answer, not for the command."""
    as_json = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_remembered(_JSON),
        help="One JSON object on stdout.",
    )
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_remembered(_QUIET),
        help="No progress and no remarks; errors and asked-for data only.",
    )
    # Eager, so that it is known when another option turns out to be wrong.
    summary = click.option(
        "--summary",
        type=values.local_path,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=summaries.remember,
        help="Add what was done, or the error, to FILE as Markdown: for the page of a CI job.",
    )
    return _stacked(as_json, quiet, summary)(command)


def machine(command: F) -> F:
    """--device and --threads: who does the work, never what comes out."""
    device = click.option(
        "--device",
        type=values.device,
        default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        show_default=True,
        help="Where to compute; the result is the same.",
    )
    threads = click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Workers; by default what the machine has.",
    )
    return _stacked(device, threads)(command)


def writing(command: F) -> F:
    """--overwrite and --dry-run."""
    overwrite = click.option(
        "--overwrite",
        is_flag=True,
        help="Replace OUT where it is a file, empty, or wholly accounted for by a receipt.",
    )
    dry_run = click.option("--dry-run", is_flag=True, help="Print the plan, write nothing.")
    return _stacked(overwrite, dry_run)(command)


def private(command: F) -> F:
    """--private, for an OUT on the Hub."""
    return click.option(
        "--private",
        is_flag=True,
        help="OUT is hf://...: the repository must be private; a new one is.",
    )(command)


def checksum(command: F) -> F:
    """--checksum."""
    return click.option(
        "--checksum", is_flag=True, help="SHA-256 of every file written, into SHA256SUMS too."
    )(command)


def attesting(command: F) -> F:
    """--checksum, --provenance and --bom: what is said about an output."""
    provenance = click.option(
        "--provenance",
        type=values.local_path,
        metavar="FILE",
        help="Write how OUT was made, as an in-toto statement (SLSA provenance); implies digests.",
    )
    bom = click.option(
        "--bom",
        type=values.local_path,
        metavar="FILE",
        help="Write what OUT consists of, as CycloneDX JSON; implies digests.",
    )
    return _stacked(checksum, provenance, bom)(command)


def adding(*, receipt: bool) -> Callable[[F], F]:
    """--add ADAPTER[=W], repeatable; with `receipt` a weight that is not given comes from there."""
    default = "the receipt's" if receipt else "1"
    return click.option(
        "--add",
        type=values.strength,
        multiple=True,
        metavar="ADAPTER[=W]",
        help=f"A further adapter and its weight (default: {default}); repeatable.",
    )


def allow_drop(command: F) -> F:
    """--allow-drop PATTERN, repeatable."""
    return click.option(
        "--allow-drop",
        multiple=True,
        metavar="PATTERN",
        help="A glob on the names of adapter tensors that may be lost; repeatable.",
    )(command)


def allow_pickle(command: F) -> F:
    """--allow-pickle."""
    return click.option(
        "--allow-pickle",
        is_flag=True,
        help="Read .bin and .pt files too: checked, then loaded in a child process with limits.",
    )(command)


def adapter_dtype(command: F) -> F:
    """--dtype of an adapter that is written."""
    return click.option(
        "--dtype",
        type=click.Choice([kind.value for kind in OutputDtype]),
        default=OutputDtype.KEEP.value,
        show_default=True,
        help="Dtype of the tensors written.",
    )(command)


def adapter_reading(command: F) -> F:
    """How the one adapter of a command is read where its file says too little."""
    return _stacked(adapter_scale, expert_packing, allow_drop, allow_pickle)(command)


def adapters_reading(command: F) -> F:
    """How adapters are read where their files say too little; scales in the inputs' order."""
    return _stacked(adapter_scales, expert_packing, allow_drop, allow_pickle)(command)


def recorded_reading(command: F) -> F:
    """As `adapters_reading`, where the receipt says what is not given."""
    return _stacked(adapter_scales, _packing(receipt=True), allow_drop, allow_pickle)(command)


def unless_recorded(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags, with None for the repeatable ones that were not given: the receipt knows them."""
    return {name: None if value == () and name != "add" else value for name, value in flags.items()}


def adapter_scale(command: F) -> F:
    """--alpha and --scale, for a file that carries neither."""
    alpha = click.option(
        "--alpha",
        type=values.number,
        metavar="N",
        help="lora_alpha of a file that carries no scale.",
    )
    scale = click.option(
        "--scale",
        type=values.number,
        metavar="F",
        help="What multiplies B A in a file that carries no scale.",
    )
    return _stacked(alpha, scale)(command)


def adapter_scales(command: F) -> F:
    """--alpha and --scale, repeatable, in the order of the inputs."""
    alpha = click.option(
        "--alpha",
        type=values.number,
        multiple=True,
        metavar="N",
        help="lora_alpha of files that carry no scale, in their order; repeatable.",
    )
    scale = click.option(
        "--scale",
        type=values.number,
        multiple=True,
        metavar="F",
        help="What multiplies B A in files that carry no scale, in their order; repeatable.",
    )
    return _stacked(alpha, scale)(command)


def values_flag(command: F) -> F:
    """--values."""
    return click.option(
        "--values", is_flag=True, help="Read the weights as well, not only headers and configs."
    )(command)


def init_adapter(command: F) -> F:
    """--init-adapter ADAPTER."""
    return click.option(
        "--init-adapter",
        type=values.artifact,
        metavar="ADAPTER",
        help="The adapter as it was before training, where its initialisation changed the base.",
    )(command)


def expert_packing(command: F) -> F:
    """--expert-packing, for files that do not record it."""
    return _packing(receipt=False)(command)


def _packing(*, receipt: bool) -> Callable[[F], F]:
    return click.option(
        "--expert-packing",
        type=click.Choice([kind.value for kind in ExpertPacking]),
        default=None if receipt else ExpertPacking.PEFT.value,
        show_default=not receipt,
        help="Columns of lora_B where experts are stacked.",
    )


def arithmetic(*, receipt: bool) -> Callable[[F], F]:
    """The flags that decide a merge's bytes; with `receipt`, what is not given comes from there."""

    def chosen(flag: str, kinds: Choices, text: str) -> Any:  # noqa: ANN401
        first = next(iter(kinds)).value
        return click.option(
            flag,
            type=click.Choice([kind.value for kind in kinds]),
            default=None if receipt else first,
            show_default=not receipt,
            help=text,
        )

    weight = click.option(
        "--weight",
        type=values.number,
        metavar="W",
        default=None if receipt else 1.0,
        show_default=not receipt,
        help="Strength of ADAPTER.",
    )
    skip = click.option(
        "--skip-unmatched",
        is_flag=True,
        default=None if receipt else False,
        help="Leave out adapter modules that the base lacks.",
    )
    return _stacked(
        weight,
        chosen("--dtype", OutputDtype, "Dtype of the tensors written."),
        chosen("--precision", Precision, "Arithmetic; float64 gives the same bytes everywhere."),
        chosen("--tie", Tie, "Tied weights, one side changed: untie, change both, refuse."),
        chosen(
            "--quantized",
            Quantized,
            "A quantized base: to 16 bit all, what changed, or nothing.",
        ),
        adapter_scales,
        _packing(receipt=receipt),
        chosen("--qlora-base", QloraBase, "The weights that the adapter was trained on."),
        init_adapter,
        skip,
        allow_drop,
        allow_pickle,
    )
