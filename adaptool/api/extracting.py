"""The verb that makes an adapter of two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptool.api.attesting import Attesting
from adaptool.api.door import Door, Progress
from adaptool.api.output import Output
from adaptool.api.writing import Sources, Writing
from adaptool.engine.extraction import DifferenceExtractor
from adaptool.model.adapter_results import ExtractedModule, ExtractResult
from adaptool.model.algebra import Measured
from adaptool.model.extract_options import ExtractOptions
from adaptool.model.keywords import reads_keywords
from adaptool.model.options import Machine, OutputDtype, chosen
from adaptool.ops.base_reading import names_of
from adaptool.ops.extract import Extracted, extracted
from adaptool.ops.provenance import base_input
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.disk import Disk


@reads_keywords
def extract(
    base: Path | str,
    tuned: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    exact: bool = False,
    dtype: str = "float32",
    allow_drop: Sequence[str] = (),
    allow_pickle: bool = False,
    checksum: bool = False,
    provenance: Path | str | None = None,
    bom: Path | str | None = None,
    private: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    disk: Disk | None = None,
) -> ExtractResult:
    """The adapter that turns `base` into `tuned`, read tensor by tensor.

    Every matrix at `rank`, or at the least rank that keeps `energy` of its squares; `exact` never
    takes a randomised subspace. What is no matrix is carried whole. Tensors that only one of the
    two has are left out where they match `allow_drop`.
    """
    options = ExtractOptions(rank, energy, chosen(OutputDtype, dtype, "--dtype"), exact)
    machine = Machine(device, threads)
    extractor = DifferenceExtractor(machine, exact=exact)
    with ExitStack() as stack:
        door = Door(stack, allow_pickle)
        paths = Path(base), Path(tuned)
        first, second = (stack.enter_context(open_checkpoint(door.path(path))) for path in paths)
        made = extracted(first, second, options, extractor, progress, allow_drop=allow_drop)
        sources = Sources((base_input(first), base_input(second, "tuned")), paths)
        attesting = Attesting.of(checksum=checksum, provenance=provenance, bom=bom)
        output = Output(
            Path(out), "extract", machine, overwrite, progress, disk or Disk(), attesting, private
        )
        writing = Writing.to(output, dry_run=dry_run)
        plan = writing.plan(
            made.adapter,
            sources,
            options.as_json(),
            allow_drop,
            layout="peft",
            base=names_of(first),
        )
        done = writing.write(replace(plan, findings=made.findings))
    measured = extractor.measured()
    return ExtractResult(
        out=Path(out),
        modules=_modules(made, measured),
        saved=tuple(item.parameter for item in made.adapter.replaced),
        unchanged=made.unchanged,
        relative_error=_total(measured),
        bytes=plan.bytes,
        findings=door.named(done.findings),
        dry_run=dry_run,
        published=done.published,
    )


def _modules(made: Extracted, measured: Mapping[str, Measured]) -> tuple[ExtractedModule, ...]:
    rows = []
    for delta in made.adapter.deltas:
        if delta.parameter not in made.differences:
            continue  # zeros, so that PEFT finds a module that it targets
        found = measured.get(made.differences[delta.parameter].name)
        error = math.sqrt(found.error / found.norm) if found and found.norm else None
        module = delta.parameter.removesuffix(".weight")
        rows.append(ExtractedModule(module, delta.terms.rank or 0, error))
    return tuple(rows)


def _total(measured: Mapping[str, Measured]) -> float | None:
    norm = math.fsum(each.norm for each in measured.values())
    return math.sqrt(math.fsum(each.error for each in measured.values()) / norm) if norm else None
