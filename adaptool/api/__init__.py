"""The verbs, as functions: paths and keyword options in, a typed result out."""

from adaptool.api.adapters import convert, resize
from adaptool.api.combining import combine
from adaptool.api.comparing import diff
from adaptool.api.extracting import extract
from adaptool.api.merging import merge, verify
from adaptool.api.reading import inspect, validate

__all__ = [
    "combine",
    "convert",
    "diff",
    "extract",
    "inspect",
    "merge",
    "resize",
    "validate",
    "verify",
]
