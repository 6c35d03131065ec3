"""The verbs, as functions: paths and keyword options in, a typed result out."""

from adaptool.api.adapters import resize
from adaptool.api.merging import merge, verify
from adaptool.api.reading import inspect, validate

__all__ = ["inspect", "merge", "resize", "validate", "verify"]
