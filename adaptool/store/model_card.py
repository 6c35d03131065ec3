"""What a model card says in front that holds for what is made of the model, too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

CARD_FILE = "README.md"
_MOST_BYTES = 64 << 10
FRONT = re.compile(r"\A---[ \t]*\r?\n(?P<front>(?:.*\r?\n)*?)---[ \t]*(?:\r?\n|\Z)")
"""What stands between the first two lines of ---, as the Hub takes a card apart."""

_WORD = r"[A-Za-z0-9][\w.+-]*"
# Plain words and addresses only: whatever else stands there is no licence's name.
_CARRIED = re.compile(
    rf"^(?:(?P<key>license|license_name|pipeline_tag):[ \t]*(?P<q>['\"]?)(?P<word>{_WORD})(?P=q)"
    rf"|license_link:[ \t]*(?P<l>['\"]?)(?P<link>https?://[\w./%#-]+|{_WORD})(?P=l))[ \t]*\r?$",
    re.MULTILINE,
)


def carried_front(root: Path) -> Mapping[str, str]:
    """Licence and task that the card in directory `root` names; empty where it names none."""
    try:
        with (root / CARD_FILE).open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return {}
    match = FRONT.match(text)
    lines = _CARRIED.finditer(match["front"]) if match else ()
    return {line["key"] or "license_link": line["word"] or line["link"] for line in lines}
