"""The verbs, as functions: paths and keyword options in, a typed result out."""

from adaptool.api.adapters import convert, resize
from adaptool.api.combining import combine
from adaptool.api.comparing import diff
from adaptool.api.extracting import extract
from adaptool.api.hub import pull
from adaptool.api.merging import merge, verify
from adaptool.api.pushing import push
from adaptool.api.reading import inspect, validate
from adaptool.api.running import run
from adaptool.api.unmerging import unmerge
from adaptool.model.options import Strength

__all__ = [
    "Strength",
    "combine",
    "convert",
    "diff",
    "extract",
    "inspect",
    "merge",
    "pull",
    "push",
    "resize",
    "run",
    "unmerge",
    "validate",
    "verify",
]
