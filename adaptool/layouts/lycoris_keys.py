"""The endings of LyCORIS' algorithms, LoRA's aside. Source: LyCORIS 4.1.3, `weight_list`."""

from __future__ import annotations

from collections.abc import Mapping

LYCORIS_ENDINGS: Mapping[str, str] = {
    "hada_w1_a": "w1_a",
    "hada_w1_b": "w1_b",
    "hada_w2_a": "w2_a",
    "hada_w2_b": "w2_b",
    "hada_t1": "t1",
    "hada_t2": "t2",
    "lokr_w1": "lokr.w1",
    "lokr_w1_a": "lokr.w1_a",
    "lokr_w1_b": "lokr.w1_b",
    "lokr_w2": "lokr.w2",
    "lokr_w2_a": "lokr.w2_a",
    "lokr_w2_b": "lokr.w2_b",
    "lokr_t2": "lokr.t2",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "w_norm",
    "b_norm": "b_norm",
    "weight": "gain",
    "on_input": "on_input",
    "a1.weight": "a1",
    "a2.weight": "a2",
    "b1.weight": "b1",
    "b2.weight": "b2",
}
"""Ending of a key -> role."""
