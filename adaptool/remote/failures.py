"""What goes wrong with the Hub, as adaptool's errors: one line, never with a token in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adaptool.errors import RemoteError, without_secrets
from adaptool.findings import Code
from adaptool.store.addresses import repository_of
from adaptool.store.safe_names import printable

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
"""A user's access token of the Hub, wherever it stands."""

LONGEST_TOLD = 200
_LOG_IN = "log in (hf auth login) or set HF_TOKEN to a token that may {what} {repo}"
_HUB = "https://huggingface.co"
_AGAIN = "run the same command again: it continues where it stopped"


def redacted(text: str) -> str:
    """`text` on one line, without tokens, signed addresses and control characters."""
    return printable(without_secrets(" ".join(text.split())), most=LONGEST_TOLD)


@contextmanager
def told(place: str, *, writing: bool = False) -> Iterator[None]:
    """What the client raises inside becomes a RemoteError about `place` (exit 6)."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        yield
    except OfflineModeIsEnabled as error:
        hint = "unset HF_HUB_OFFLINE, or name a local directory"
        message = "cannot be reached: the Hub's client is in offline mode"
        raise RemoteError(message, code=Code.OFFLINE, file=place, hint=hint) from error
    except LocalTokenNotFoundError as error:
        hint = _log_in(place, writing=writing)
        message = "needs a token, and there is none"
        raise RemoteError(message, code=Code.AUTHENTICATION, file=place, hint=hint) from error
    except HfHubHTTPError as error:
        raise refusal(error, place, writing=writing) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        message, hint = "has no address that a request can go to", "HF_ENDPOINT names no Hub"
        raise RemoteError(message, code=Code.NETWORK, file=place, hint=hint) from error
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        raise unreached(error, place) from error
    except RuntimeError as error:  # the client's upload threads wrap what they meet
        raise _wrapped(error, place, writing=writing) from error
    except UnicodeEncodeError as error:  # a header takes no such token
        hint = _log_in(place, writing=writing)
        message = "the token holds characters that no token has"
        raise RemoteError(message, code=Code.AUTHENTICATION, file=place, hint=hint) from error
    except (ValueError, KeyError, TypeError) as error:
        message = f"answered in a way that the Hub's client cannot read ({type(error).__name__})"
        hint = "is HF_ENDPOINT the address of a Hub?"
        raise RemoteError(message, code=Code.NETWORK, file=place, hint=hint) from error


def unreached(error: Exception, place: str) -> RemoteError:
    """The error where no whole answer came; worth another try."""
    message = f"the connection failed ({type(error).__name__})"
    return RemoteError(message, code=Code.NETWORK, file=place, hint=_AGAIN, retryable=True)


def cut_short(file: str, came: int, size: int) -> RemoteError:
    """The error where a file ended before its end; worth another try."""
    message = f"ended after {came} of {size} bytes"
    return RemoteError(message, code=Code.NETWORK, file=file, hint=_AGAIN, retryable=True)


def refusal(error: HfHubHTTPError, place: str, *, writing: bool = False) -> RemoteError:
    """The error that the server's refusal is."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return _gated(place)
    if isinstance(error, RevisionNotFoundError):
        return _missing(place, "no such revision", _revision_hint(place))
    if isinstance(error, RemoteEntryNotFoundError):
        return _missing(place, "no such file in the repository", "see its list of files")
    return _by_status(error, place, writing=writing)


def _by_status(error: HfHubHTTPError, place: str, *, writing: bool) -> RemoteError:
    status, why, log_in = error.response.status_code, _why(error), _log_in(place, writing=writing)
    if status == 404:
        return _missing(place, "no such repository", f"check the name; if private, {log_in}")
    if status in {401, 403}:
        return RemoteError(why, code=Code.AUTHENTICATION, file=place, hint=log_in)
    if status in {409, 412}:
        moved = "the branch moved while this was prepared: its parent commit changed"
        message = f"{moved} (status {status}), so nothing was pushed"
        hint = "look at what was pushed meanwhile, then run the command again"
        return RemoteError(message, code=Code.REMOTE_MOVED, file=place, hint=hint, retryable=True)
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        hint = f"try again in {wait} seconds" if wait.isdecimal() else "try again later"
        return RemoteError(why, code=Code.RATE_LIMITED, file=place, hint=hint, retryable=True)
    retryable = status >= 500 or status == 408
    again = _AGAIN if retryable else None
    return RemoteError(why, code=Code.NETWORK, file=place, hint=again, retryable=retryable)


def _wrapped(error: RuntimeError, place: str, *, writing: bool) -> RemoteError:
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return refusal(cause, place, writing=writing)
    return unreached(cause if isinstance(cause, Exception) else error, place)


def _why(error: HfHubHTTPError) -> str:
    said = redacted(error.server_message or "")
    return f"refused with status {error.response.status_code}" + (f": {said}" if said else "")


def _gated(place: str) -> RemoteError:
    repo = repository_of(place)
    message = "is gated, and this account has not been let in"
    hub = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    hint = f"accept its conditions at {hub}/{repo}, then use that account's token"
    return RemoteError(message, code=Code.GATED, file=place, hint=hint)


def _missing(place: str, message: str, hint: str) -> RemoteError:
    return RemoteError(message, code=Code.NOT_FOUND, file=place, hint=hint)


def _revision_hint(place: str) -> str:
    """What could be meant by an address whose branch, tag or commit does not exist."""
    repo = repository_of(place)
    revision = place.partition("@")[2]
    if not revision:
        return f"it has no branch main; name one: hf://{repo}@BRANCH"
    slash = "; a / in a branch's name is written %2F" if "/" in revision else ""
    return f"see the branches and tags of the repository{slash}"


def _log_in(place: str, *, writing: bool) -> str:
    return _LOG_IN.format(what="write to" if writing else "read", repo=repository_of(place))
