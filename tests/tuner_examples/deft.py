"""DEFT: both ways to make a projector, scaled, PaRa, Conv1D, a rank that the outputs cap."""

from __future__ import annotations

from tuner_cases import Example

LLAMA = {"r": 4, "target_modules": ["q_proj", "up_proj", "down_proj"]}
QR = {"decomposition_method": "qr"}
GPT2 = {"r": 3, "target_modules": ["c_attn", "c_proj"]}
EXAMPLES = (
    Example("llama", LLAMA, loose=True),
    Example("llama", {**LLAMA, **QR, "alpha": 6}, "qr, scaled", loose=True),
    Example("llama", {**LLAMA, "para": True}, "PaRa", loose=True),
    Example("gpt2", {**GPT2, **QR, "para": True}, "PaRa, qr", loose=True),
    Example("gpt2", {**GPT2, "alpha": 2}, loose=True),
    Example("convnet", {"r": 6, "alpha": 2, **QR, "target_modules": ["out"]}, "capped", loose=True),
    Example("phi3", {"r": 4, "target_modules": ["qkv_proj"]}, "fused", loose=True),
)
