"""PSOFT: both ways to split components, both SVDs, R free, orthogonal, with and without scales."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"r": 4, "target_modules": ["q_proj", "up_proj", "down_proj"]}
SERIES = {"use_cayley_neumann": True}
EXAMPLES = (
    Example("llama", LLAMA, loose=True),
    Example("llama", {**LLAMA, "ab_svd_init": "pissa_init", "psoft_alpha": 3}, "PiSSA", loose=True),
    Example("llama", {**LLAMA, "psoft_orth": False, "psoft_mag_a": False}, "free", loose=True),
    Example("llama", {**LLAMA, "r": 1, "psoft_mag_b": False}, "rank 1", loose=True),
    Example(
        "llama",
        {**LLAMA, "psoft_svd": "lowrank", "random_seed": 5, "psoft_svd_lowrank_niter": 2},
        "sketched",
        loose=True,
    ),
    *(
        Example("llama", {**LLAMA, **SERIES, "num_cayley_neumann_terms": terms}, note, loose=True)
        for terms, note in ((1, "one term"), (2, "two terms"), (3, "three terms"))
    ),
    Example("bert", {"r": 5, **SERIES, "target_modules": ["query", "dense"]}, "series", loose=True),
    Example(
        "phi3",
        {"r": 6, **SERIES, "cayley_neumann_eps": 0.4, "target_modules": ["qkv_proj"]},
        "fused, bounded",
        loose=True,
    ),
)
