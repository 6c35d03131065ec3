"""Module names of diffusion models: those of the published checkpoints, and diffusers'.

A line is `checkpoint name = diffusers name [sibling ...] [/cut]`; `#` is a number that varies. More
than one diffusers name: their rows stand one after the other in the checkpoint's module. A sibling
is the last part of a name beside the one before. Cuts: `/1:1:1:4` how the rows are divided (equal
parts without one); `/swap` diffusers has the halves the other way round (scale, shift instead of
shift, scale); `/swap-pair` only where there are two parts of the module's input size, not six;
`/scale` a norm whose parameter the checkpoint calls `scale`; `/by 1:5` a module with five times as
many inputs as outputs, where sizes tell architectures apart.

Source: the names in the published checkpoints, and the module names of diffusers 0.42.1
(Apache-2.0) with the correspondence that its single-file loaders define.
"""

from __future__ import annotations

from collections.abc import Iterator

_FLUX_BLOCKS = """
double_blocks.#.img_attn.qkv = transformer_blocks.#.attn.to_q to_k to_v
double_blocks.#.txt_attn.qkv = transformer_blocks.#.attn.add_q_proj add_k_proj add_v_proj
double_blocks.#.img_attn.proj = transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn.proj = transformer_blocks.#.attn.to_add_out
double_blocks.#.img_attn.norm.query_norm = transformer_blocks.#.attn.norm_q /scale
double_blocks.#.img_attn.norm.key_norm = transformer_blocks.#.attn.norm_k /scale
double_blocks.#.txt_attn.norm.query_norm = transformer_blocks.#.attn.norm_added_q /scale
double_blocks.#.txt_attn.norm.key_norm = transformer_blocks.#.attn.norm_added_k /scale
single_blocks.#.norm.query_norm = single_transformer_blocks.#.attn.norm_q /scale
single_blocks.#.norm.key_norm = single_transformer_blocks.#.attn.norm_k /scale
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = norm_out.linear /swap
img_in = x_embedder
txt_in = context_embedder
"""

# FLUX.1 (dev, schnell, Fill, Kontext, Krea) and Chroma, which replaces the modulation.
FLUX = (
    _FLUX_BLOCKS
    + """
double_blocks.#.img_mlp.0 = transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.2 = transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.0 = transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.2 = transformer_blocks.#.ff_context.net.2
double_blocks.#.img_mod.lin = transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.lin = transformer_blocks.#.norm1_context.linear
single_blocks.#.linear1 = single_transformer_blocks.#.attn.to_q to_k to_v ^proj_mlp /1:1:1:4
single_blocks.#.linear2 = single_transformer_blocks.#.proj_out /by 1:5
single_blocks.#.modulation.lin = single_transformer_blocks.#.norm.linear
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
distilled_guidance_layer.in_proj = distilled_guidance_layer.in_proj
distilled_guidance_layer.out_proj = distilled_guidance_layer.out_proj
distilled_guidance_layer.layers.#.in_layer = distilled_guidance_layer.layers.#.linear_1
distilled_guidance_layer.layers.#.out_layer = distilled_guidance_layer.layers.#.linear_2
distilled_guidance_layer.norms.# = distilled_guidance_layer.norms.# /scale
double_blocks.#.processor.qkv_lora1 = transformer_blocks.#.attn.to_q to_k to_v
double_blocks.#.processor.qkv_lora2 = transformer_blocks.#.attn.add_q_proj add_k_proj add_v_proj
double_blocks.#.processor.proj_lora1 = transformer_blocks.#.attn.to_out.0
double_blocks.#.processor.proj_lora2 = transformer_blocks.#.attn.to_add_out
single_blocks.#.processor.qkv_lora = single_transformer_blocks.#.attn.to_q to_k to_v
single_blocks.#.processor.proj_lora = single_transformer_blocks.#.proj_out
"""
)
# The last six are the processors of XLabs' adapters, which hold factors beside the modules.

FLUX2 = (
    _FLUX_BLOCKS
    + """
double_blocks.#.img_mlp.0 = transformer_blocks.#.ff.linear_in
double_blocks.#.img_mlp.2 = transformer_blocks.#.ff.linear_out
double_blocks.#.txt_mlp.0 = transformer_blocks.#.ff_context.linear_in
double_blocks.#.txt_mlp.2 = transformer_blocks.#.ff_context.linear_out
single_blocks.#.linear1 = single_transformer_blocks.#.attn.to_qkv_mlp_proj /by 9:1
single_blocks.#.linear2 = single_transformer_blocks.#.attn.to_out /by 1:4
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
single_stream_modulation.lin = single_stream_modulation.linear
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
"""
)

SD3 = """
joint_blocks.#.x_block.attn.qkv = transformer_blocks.#.attn.to_q to_k to_v
joint_blocks.#.x_block.attn2.qkv = transformer_blocks.#.attn2.to_q to_k to_v
joint_blocks.#.context_block.attn.qkv = transformer_blocks.#.attn.add_q_proj add_k_proj add_v_proj
joint_blocks.#.x_block.attn.proj = transformer_blocks.#.attn.to_out.0
joint_blocks.#.x_block.attn2.proj = transformer_blocks.#.attn2.to_out.0
joint_blocks.#.context_block.attn.proj = transformer_blocks.#.attn.to_add_out
joint_blocks.#.x_block.attn.ln_q = transformer_blocks.#.attn.norm_q
joint_blocks.#.x_block.attn.ln_k = transformer_blocks.#.attn.norm_k
joint_blocks.#.x_block.attn2.ln_q = transformer_blocks.#.attn2.norm_q
joint_blocks.#.x_block.attn2.ln_k = transformer_blocks.#.attn2.norm_k
joint_blocks.#.context_block.attn.ln_q = transformer_blocks.#.attn.norm_added_q
joint_blocks.#.context_block.attn.ln_k = transformer_blocks.#.attn.norm_added_k
joint_blocks.#.x_block.mlp.fc1 = transformer_blocks.#.ff.net.0.proj
joint_blocks.#.x_block.mlp.fc2 = transformer_blocks.#.ff.net.2
joint_blocks.#.context_block.mlp.fc1 = transformer_blocks.#.ff_context.net.0.proj
joint_blocks.#.context_block.mlp.fc2 = transformer_blocks.#.ff_context.net.2
joint_blocks.#.x_block.adaLN_modulation.1 = transformer_blocks.#.norm1.linear
joint_blocks.#.context_block.adaLN_modulation.1 = transformer_blocks.#.norm1_context.linear \
/swap-pair
x_embedder.proj = pos_embed.proj
context_embedder = context_embedder
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = norm_out.linear /swap
"""

_QWEN_SAME = """
transformer_blocks.#.attn.to_q
transformer_blocks.#.attn.to_k
transformer_blocks.#.attn.to_v
transformer_blocks.#.attn.to_out.0
transformer_blocks.#.attn.add_q_proj
transformer_blocks.#.attn.add_k_proj
transformer_blocks.#.attn.add_v_proj
transformer_blocks.#.attn.to_add_out
transformer_blocks.#.attn.norm_q
transformer_blocks.#.attn.norm_k
transformer_blocks.#.attn.norm_added_q
transformer_blocks.#.attn.norm_added_k
transformer_blocks.#.img_mod.1
transformer_blocks.#.txt_mod.1
transformer_blocks.#.img_mlp.net.0.proj
transformer_blocks.#.img_mlp.net.2
transformer_blocks.#.txt_mlp.net.0.proj
transformer_blocks.#.txt_mlp.net.2
time_text_embed.timestep_embedder.linear_1
time_text_embed.timestep_embedder.linear_2
img_in
txt_in
txt_norm
norm_out.linear
proj_out
"""
QWEN_IMAGE = "\n".join(f"{name} = {name}" for name in _QWEN_SAME.split())

_Z_IMAGE_BLOCK = """
{0}.#.attention.qkv = {0}.#.attention.to_q to_k to_v
{0}.#.attention.out = {0}.#.attention.to_out.0
{0}.#.attention.q_norm = {0}.#.attention.norm_q
{0}.#.attention.k_norm = {0}.#.attention.norm_k
{0}.#.feed_forward.w1 = {0}.#.feed_forward.w1
{0}.#.feed_forward.w2 = {0}.#.feed_forward.w2
{0}.#.feed_forward.w3 = {0}.#.feed_forward.w3
{0}.#.adaLN_modulation.0 = {0}.#.adaLN_modulation.0
{0}.#.attention_norm1 = {0}.#.attention_norm1
{0}.#.attention_norm2 = {0}.#.attention_norm2
{0}.#.ffn_norm1 = {0}.#.ffn_norm1
{0}.#.ffn_norm2 = {0}.#.ffn_norm2
"""
_REFINED = ("layers", "noise_refiner", "context_refiner")
Z_IMAGE = (
    "".join(_Z_IMAGE_BLOCK.format(stack) for stack in _REFINED)
    + """
x_embedder = all_x_embedder.2-1
final_layer.linear = all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 = all_final_layer.2-1.adaLN_modulation.1
t_embedder.mlp.0 = t_embedder.mlp.0
t_embedder.mlp.2 = t_embedder.mlp.2
cap_embedder.0 = cap_embedder.0
cap_embedder.1 = cap_embedder.1
"""
)

_LUMINA2_BLOCK = """
{0}.#.attention.qkv = {0}.#.attn.to_q to_k to_v /3:1:1
{0}.#.attention.out = {0}.#.attn.to_out.0
{0}.#.attention.q_norm = {0}.#.attn.norm_q
{0}.#.attention.k_norm = {0}.#.attn.norm_k
{0}.#.feed_forward.w1 = {0}.#.feed_forward.linear_1
{0}.#.feed_forward.w2 = {0}.#.feed_forward.linear_2
{0}.#.feed_forward.w3 = {0}.#.feed_forward.linear_3
{0}.#.adaLN_modulation.1 = {0}.#.norm1.linear
"""
LUMINA2 = (
    "".join(_LUMINA2_BLOCK.format(stack) for stack in _REFINED)
    + """
x_embedder = x_embedder
final_layer.linear = norm_out.linear_2
final_layer.adaLN_modulation.1 = norm_out.linear_1
t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
cap_embedder.0 = time_caption_embed.caption_embedder.0
cap_embedder.1 = time_caption_embed.caption_embedder.1
"""
)

WAN = """
blocks.#.self_attn.q = blocks.#.attn1.to_q
blocks.#.self_attn.k = blocks.#.attn1.to_k
blocks.#.self_attn.v = blocks.#.attn1.to_v
blocks.#.self_attn.o = blocks.#.attn1.to_out.0
blocks.#.self_attn.norm_q = blocks.#.attn1.norm_q
blocks.#.self_attn.norm_k = blocks.#.attn1.norm_k
blocks.#.cross_attn.q = blocks.#.attn2.to_q
blocks.#.cross_attn.k = blocks.#.attn2.to_k
blocks.#.cross_attn.v = blocks.#.attn2.to_v
blocks.#.cross_attn.o = blocks.#.attn2.to_out.0
blocks.#.cross_attn.k_img = blocks.#.attn2.add_k_proj
blocks.#.cross_attn.v_img = blocks.#.attn2.add_v_proj
blocks.#.cross_attn.norm_q = blocks.#.attn2.norm_q
blocks.#.cross_attn.norm_k = blocks.#.attn2.norm_k
blocks.#.cross_attn.norm_k_img = blocks.#.attn2.norm_added_k
blocks.#.ffn.0 = blocks.#.ffn.net.0.proj
blocks.#.ffn.2 = blocks.#.ffn.net.2
blocks.#.norm1 = blocks.#.norm1
blocks.#.norm2 = blocks.#.norm3
blocks.#.norm3 = blocks.#.norm2
patch_embedding = patch_embedding
text_embedding.0 = condition_embedder.text_embedder.linear_1
text_embedding.2 = condition_embedder.text_embedder.linear_2
time_embedding.0 = condition_embedder.time_embedder.linear_1
time_embedding.2 = condition_embedder.time_embedder.linear_2
time_projection.1 = condition_embedder.time_proj
img_emb.proj.0 = condition_embedder.image_embedder.norm1
img_emb.proj.1 = condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3 = condition_embedder.image_embedder.ff.net.2
img_emb.proj.4 = condition_embedder.image_embedder.norm2
head.head = proj_out
"""

_REFINER = "txt_in.individual_token_refiner.blocks.#"
_REFINER_HERE = "context_embedder.token_refiner.refiner_blocks.#"
HUNYUAN_VIDEO = f"""
double_blocks.#.img_attn_qkv = transformer_blocks.#.attn.to_q to_k to_v
double_blocks.#.txt_attn_qkv = transformer_blocks.#.attn.add_q_proj add_k_proj add_v_proj
double_blocks.#.img_attn_proj = transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn_proj = transformer_blocks.#.attn.to_add_out
double_blocks.#.img_attn_q_norm = transformer_blocks.#.attn.norm_q
double_blocks.#.img_attn_k_norm = transformer_blocks.#.attn.norm_k
double_blocks.#.txt_attn_q_norm = transformer_blocks.#.attn.norm_added_q
double_blocks.#.txt_attn_k_norm = transformer_blocks.#.attn.norm_added_k
double_blocks.#.img_mlp.fc1 = transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.fc2 = transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.fc1 = transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.fc2 = transformer_blocks.#.ff_context.net.2
double_blocks.#.img_mod.linear = transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.linear = transformer_blocks.#.norm1_context.linear
single_blocks.#.linear1 = single_transformer_blocks.#.attn.to_q to_k to_v ^proj_mlp /1:1:1:4
single_blocks.#.linear2 = single_transformer_blocks.#.proj_out /by 1:5
single_blocks.#.modulation.linear = single_transformer_blocks.#.norm.linear
single_blocks.#.q_norm = single_transformer_blocks.#.attn.norm_q
single_blocks.#.k_norm = single_transformer_blocks.#.attn.norm_k
img_in.proj = x_embedder.proj
time_in.mlp.0 = time_text_embed.timestep_embedder.linear_1
time_in.mlp.2 = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.mlp.0 = time_text_embed.guidance_embedder.linear_1
guidance_in.mlp.2 = time_text_embed.guidance_embedder.linear_2
txt_in.input_embedder = context_embedder.proj_in
txt_in.t_embedder.mlp.0 = context_embedder.time_text_embed.timestep_embedder.linear_1
txt_in.t_embedder.mlp.2 = context_embedder.time_text_embed.timestep_embedder.linear_2
txt_in.c_embedder.linear_1 = context_embedder.time_text_embed.text_embedder.linear_1
txt_in.c_embedder.linear_2 = context_embedder.time_text_embed.text_embedder.linear_2
{_REFINER}.self_attn_qkv = {_REFINER_HERE}.attn.to_q to_k to_v
{_REFINER}.self_attn_proj = {_REFINER_HERE}.attn.to_out.0
{_REFINER}.mlp.fc1 = {_REFINER_HERE}.ff.net.0.proj
{_REFINER}.mlp.fc2 = {_REFINER_HERE}.ff.net.2
{_REFINER}.adaLN_modulation.1 = {_REFINER_HERE}.norm_out.linear
{_REFINER}.norm1 = {_REFINER_HERE}.norm1
{_REFINER}.norm2 = {_REFINER_HERE}.norm2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = norm_out.linear /swap
"""

# Anima, on Cosmos-Predict2: without the adapter of its text encoder, which is another component.
ANIMA = """
blocks.#.self_attn.q_proj = transformer_blocks.#.attn1.to_q
blocks.#.self_attn.k_proj = transformer_blocks.#.attn1.to_k
blocks.#.self_attn.v_proj = transformer_blocks.#.attn1.to_v
blocks.#.self_attn.output_proj = transformer_blocks.#.attn1.to_out.0
blocks.#.self_attn.q_norm = transformer_blocks.#.attn1.norm_q
blocks.#.self_attn.k_norm = transformer_blocks.#.attn1.norm_k
blocks.#.cross_attn.q_proj = transformer_blocks.#.attn2.to_q
blocks.#.cross_attn.k_proj = transformer_blocks.#.attn2.to_k
blocks.#.cross_attn.v_proj = transformer_blocks.#.attn2.to_v
blocks.#.cross_attn.output_proj = transformer_blocks.#.attn2.to_out.0
blocks.#.cross_attn.q_norm = transformer_blocks.#.attn2.norm_q
blocks.#.cross_attn.k_norm = transformer_blocks.#.attn2.norm_k
blocks.#.mlp.layer1 = transformer_blocks.#.ff.net.0.proj
blocks.#.mlp.layer2 = transformer_blocks.#.ff.net.2
blocks.#.adaln_modulation_self_attn.1 = transformer_blocks.#.norm1.linear_1
blocks.#.adaln_modulation_self_attn.2 = transformer_blocks.#.norm1.linear_2
blocks.#.adaln_modulation_cross_attn.1 = transformer_blocks.#.norm2.linear_1
blocks.#.adaln_modulation_cross_attn.2 = transformer_blocks.#.norm2.linear_2
blocks.#.adaln_modulation_mlp.1 = transformer_blocks.#.norm3.linear_1
blocks.#.adaln_modulation_mlp.2 = transformer_blocks.#.norm3.linear_2
x_embedder.proj.1 = patch_embed.proj
t_embedder.1.linear_1 = time_embed.t_embedder.linear_1
t_embedder.1.linear_2 = time_embed.t_embedder.linear_2
t_embedding_norm = time_embed.norm
final_layer.adaln_modulation.1 = norm_out.linear_1
final_layer.adaln_modulation.2 = norm_out.linear_2
final_layer.linear = proj_out
"""

_UNET_ENDS = """
input_blocks.0.0 = conv_in
time_embed.0 = time_embedding.linear_1
time_embed.2 = time_embedding.linear_2
label_emb.0.0 = add_embedding.linear_1
label_emb.0.2 = add_embedding.linear_2
out.0 = conv_norm_out
out.2 = conv_out
"""
_RESNET = """
in_layers.0 = norm1
in_layers.2 = conv1
emb_layers.1 = time_emb_proj
out_layers.0 = norm2
out_layers.3 = conv2
skip_connection = conv_shortcut
"""
_IN_TRANSFORMER = """
attn1.to_q attn1.to_k attn1.to_v attn1.to_out.0 attn2.to_q attn2.to_k attn2.to_v attn2.to_out.0
ff.net.0.proj ff.net.2 norm1 norm2 norm3
"""
_LAYERS = 2


def unet(down: tuple[bool, ...], up: tuple[bool, ...], depth: str) -> str:
    """The table of a UNet of Stable Diffusion; `down` and `up` say which blocks attend.

    `depth`: the number of a transformer's block, `0` where there is only one.
    """
    lines = [_UNET_ENDS]
    for here, there, attends in _containers(down, up):
        leaves = _attention_leaves(depth) if attends else _pairs(_RESNET)
        lines += [f"{here}.{old} = {there}.{new}" for old, new in leaves]
    lines += [f"{here} = {there}" for here, there in _samplers(down, up)]
    return "\n".join(lines)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.strip().splitlines():
        old, _, new = line.partition(" = ")
        yield old, new


def _attention_leaves(depth: str) -> Iterator[tuple[str, str]]:
    inner = [f"transformer_blocks.{depth}.{name}" for name in _IN_TRANSFORMER.split()]
    for name in ("norm", "proj_in", "proj_out", *inner):
        yield name, name


def _containers(down: tuple[bool, ...], up: tuple[bool, ...]) -> Iterator[tuple[str, str, bool]]:
    """Resnets and attentions: (checkpoint's path, diffusers' path, whether it is attention)."""
    for place, there in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{place}", f"mid_block.{there}", place == 1
    for block, attends in enumerate(down):
        for layer in range(_LAYERS):
            here = f"input_blocks.{1 + block * (_LAYERS + 1) + layer}"
            yield from _layer(here, f"down_blocks.{block}", layer, attends=attends)
    for block, attends in enumerate(up):
        for layer in range(_LAYERS + 1):
            here = f"output_blocks.{block * (_LAYERS + 1) + layer}"
            yield from _layer(here, f"up_blocks.{block}", layer, attends=attends)


def _layer(here: str, block: str, layer: int, *, attends: bool) -> Iterator[tuple[str, str, bool]]:
    yield f"{here}.0", f"{block}.resnets.{layer}", False
    if attends:
        yield f"{here}.1", f"{block}.attentions.{layer}", True


def _samplers(down: tuple[bool, ...], up: tuple[bool, ...]) -> Iterator[tuple[str, str]]:
    for block in range(len(down) - 1):
        here = f"input_blocks.{(block + 1) * (_LAYERS + 1)}.0.op"
        yield here, f"down_blocks.{block}.downsamplers.0.conv"
    for block, attends in enumerate(up[:-1]):
        here = f"output_blocks.{block * (_LAYERS + 1) + _LAYERS}.{1 + attends}.conv"
        yield here, f"up_blocks.{block}.upsamplers.0.conv"
