"""Regular expressions from untrusted configs."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from adaptool.errors import AdaptoolError, InputError
from adaptool.findings import Code
from adaptool.names.patterns import PatternTable, check_expression

# As they stand in adapters on the Hub, or as PEFT's documentation writes them.
USUAL = (
    "q_proj",
    r"model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
    r".*\.(q_proj|v_proj)",
    r".*(self_attn|mlp).*(q|k|v|o|gate|up|down)_proj$",
    r"^(?!.*visual).*(?:proj|fc\d).*",
    r"model.layers.(0|1|2|3|4|5|6|7|8|9|10|11|12)..*(q|v)_proj",
    r"(.*\.)?blocks\.[0-9]{1,3}\.attn\.to_[qkv]",
    r"^(?:model\.)?layers\.1[0-9]\.mlp",
)
HOSTILE = (
    r"(.*)*$x",
    r"([a-z_.0-9]+)+!",
    r"(a|a|ab)*!",
    r"(a?a)*!",
    r"(a?){60}!",
    r"a?" * 60 + "!",
    r"(.{0,60}){0,60}!",
    r"(\w+\.)+x",
    r".*.*.*.*x",
    r"(a*)\1",
    r"((a{0,9}){0,9}){0,9}!",
    r"(?=(a+)+b)a",
    r"x" * 513,
)


@pytest.mark.parametrize("expression", USUAL)
def test_usual_expression_passes(expression: str) -> None:
    """What people write is not taken for an attack."""
    check_expression(expression, field="target_modules")


@pytest.mark.parametrize("expression", HOSTILE)
def test_expression_that_could_hang_is_refused(expression: str) -> None:
    """Before it is ever matched; the error names the field."""
    with pytest.raises(InputError) as caught:
        check_expression(expression, field="target_modules")
    assert caught.value.code is Code.PATTERN_UNSAFE
    assert caught.value.field == "target_modules"


@pytest.mark.parametrize("expression", ["(", "[a", "*", "a{2,1}", "(?i)a"])
def test_table_names_the_key_it_cannot_use(expression: str) -> None:
    """Also where it is sound alone, but not inside the expression that PEFT puts it into."""
    with pytest.raises(InputError) as caught:
        PatternTable({expression: 1}, field="rank_pattern")
    assert caught.value.code in (Code.PATTERN_INVALID, Code.PATTERN_UNSAFE)
    assert (caught.value.field or "").startswith("rank_pattern[")


@pytest.mark.parametrize("depth", [100, 200, 255])
def test_deep_nesting_is_matched_or_refused(depth: int) -> None:
    """Deep parentheses end in an answer or in an error of ours, never in a RecursionError."""
    key = "(" * depth + "a" + ")" * depth
    with suppress(InputError):
        assert PatternTable({key: 1}, field="rank_pattern").get("m.a", 0) == 1


@pytest.mark.parametrize(
    ("patterns", "kind"),
    [
        ({f"m{i}": 1 for i in range(100_001)}, "patterns"),
        ({f"m{i}.*": 1 for i in range(1001)}, "reg"),
    ],
)
def test_too_many_patterns_are_a_limit(patterns: dict[str, int], kind: str) -> None:
    """Plain paths are looked up, expressions tried one by one: there may be fewer of them."""
    with pytest.raises(AdaptoolError) as caught:
        PatternTable(patterns, field="rank_pattern")
    assert (caught.value.exit_code, caught.value.code) == (7, Code.LIMIT_EXCEEDED)
    assert kind in caught.value.message


def test_overlong_path_is_not_matched() -> None:
    """Polynomial time is bounded by the length of what is matched."""
    table = PatternTable({".*a.*b": 1}, field="rank_pattern")
    with pytest.raises(InputError) as caught:
        table.get("x" * 513, 0)
    assert caught.value.code is Code.PATTERN_UNSAFE


PATHS = (
    "layers.0.q_proj",
    "layers.10.q_proj",
    "q_proj",
    "xq_proj",
    "layers.0.mlp.up",
    "vision.q_proj",
)
TABLES = (
    {"q_proj": 1, "layers.0.q_proj": 2},
    {"layers.0.q_proj": 2, "q_proj": 1},
    {r"layers\.\d+\.q_proj": 1, "q_proj": 2},
    {"q_proj": 2, r"layers\.\d+\.q_proj": 1},
    {r"^layers\.0": 1, r".*up": 2, "q_proj": 3},
    {"proj": 1, r"\w?q_proj": 2},
)


@pytest.mark.parametrize("patterns", TABLES)
@pytest.mark.parametrize("path", PATHS)
def test_first_key_that_matches_as_in_peft_wins(patterns: dict[str, int], path: str) -> None:
    """Against PEFT's own expression, tried in the dict's order."""
    expected = next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), 0
    )
    assert PatternTable(patterns, field="rank_pattern").get(path, 0) == expected
