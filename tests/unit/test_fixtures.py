"""fixtures/ is what its generator writes."""

from __future__ import annotations

from pathlib import Path

import pytest

import make_fixtures


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_committed_fixtures_are_what_the_generator_writes(tmp_path: Path) -> None:
    """The same seeds give the same bytes, so the fixtures can be written again anywhere."""
    make_fixtures.write_fixtures(tmp_path)
    written = {folder.name for folder in tmp_path.iterdir()}
    assert written == {"base", "adapter"}
    for name in written:
        assert _files(make_fixtures.FIXTURES / name) == _files(tmp_path / name)


def test_fixtures_stay_small() -> None:
    """They live in git: less than 400 kB together."""
    assert sum(map(len, _files(make_fixtures.FIXTURES).values())) < 400_000


@pytest.mark.slow
def test_transformers_and_peft_load_the_fixtures() -> None:
    """The libraries whose files these imitate find nothing missing and nothing left over."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_fixtures.FIXTURES / "base"
    model, loading = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    assert {name: list(found) for name, found in loading.items() if found} == {}
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(base)("w3 w255")["input_ids"] == [3, 255]
    before = model.model.layers[1].mlp.down_proj.weight.clone()
    adapted = PeftModel.from_pretrained(model, make_fixtures.FIXTURES / "adapter")
    after = adapted.merge_and_unload().model.layers[1].mlp.down_proj.weight
    assert not torch.equal(before, after)
