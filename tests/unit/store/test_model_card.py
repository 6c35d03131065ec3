"""What is carried over from the card of an input."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.store.model_card import carried_front


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\n---\n# Model\n", {"license": "mit"}),
        ("---\r\nlicense: 'apache-2.0'\r\n---\r\n", {"license": "apache-2.0"}),
        (
            '---\nlicense: other\nlicense_name: "llama3.1"\nlicense_link: LICENSE\n---',
            {"license": "other", "license_name": "llama3.1", "license_link": "LICENSE"},
        ),
        (
            "---\nlicense_link: https://example.org/a/LICENSE-2.0#x\n---\n",
            {"license_link": "https://example.org/a/LICENSE-2.0#x"},
        ),
        ("---\npipeline_tag: text-generation\n---\n", {"pipeline_tag": "text-generation"}),
        ("---\ntags:\n- x\n---\nlicense: mit\n", {}),
        ("license: mit\n", {}),
        ("---\nlicense: mit\n", {}),
        ("---\nlicense: [mit, other]\n---\n", {}),
        ("---\nlicense_link: /home/me/LICENSE\n---\n", {}),
        ("---\nlicense_link: file:///home/me/LICENSE\n---\n", {}),
        ("---\nlicense: ../mit\n---\n", {}),
        ("---\ncardData:\n  license: mit\n---\n", {}),
        ("", {}),
    ],
)
def test_plain_words_of_the_front_matter_are_carried(
    tmp_path: Path, text: str, expected: dict[str, str]
) -> None:
    """Licence and task; never a path, a list, or what stands in the text."""
    (tmp_path / "README.md").write_bytes(text.encode())
    assert carried_front(tmp_path) == expected


def test_card_that_is_not_there_or_no_file_says_nothing(tmp_path: Path) -> None:
    """Nor one that is no text."""
    assert carried_front(tmp_path) == {}
    (tmp_path / "README.md").mkdir()
    assert carried_front(tmp_path) == {}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert carried_front(tmp_path / "other") == {}
