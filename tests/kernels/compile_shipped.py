"""compile_shipped.py CAPABILITY: one JSON line for each kernel of the model's shapes."""

import json
import re
import sys

import machine_code
import torch

from diffusiongemma_kernels import compiling
from diffusiongemma_kernels.attention import _config
from diffusiongemma_kernels.attention import _hopper as _hopper_attention
from diffusiongemma_kernels.attention import _kernel as attention
from diffusiongemma_kernels.attention import hopper as attention_hopper
from diffusiongemma_kernels.canvas_rows import _kernel as canvas_rows
from diffusiongemma_kernels.canvas_step import _config as step_config
from diffusiongemma_kernels.canvas_step import _kernel as canvas_step
from diffusiongemma_kernels.lm_head import _config as lm_config
from diffusiongemma_kernels.lm_head import _hopper as _hopper_lm_head
from diffusiongemma_kernels.lm_head import _kernel as lm_head
from diffusiongemma_kernels.lm_head import hopper as lm_head_hopper
from diffusiongemma_kernels.moe_gemm import _config as moe_config
from diffusiongemma_kernels.moe_gemm import _hopper, hopper
from diffusiongemma_kernels.moe_gemm import _kernel as moe
from diffusiongemma_kernels.moe_gemm.op import lane
from diffusiongemma_kernels.moe_gemm_fp4 import _config as fp4_config
from diffusiongemma_kernels.moe_gemm_fp4 import _kernel as fp4
from diffusiongemma_kernels.moe_sort import _kernel as moe_sort
from diffusiongemma_kernels.norms import _kernel as layer_norms
from diffusiongemma_kernels.qkv import _kernel as qkv
from diffusiongemma_kernels.qkv.op import NUMBERS
from diffusiongemma_kernels.route import _kernel as routing
from diffusiongemma_kernels.row_stats import _kernel as row_stats
from diffusiongemma_kernels.soft_mix import _config as mix_config
from diffusiongemma_kernels.soft_mix import _kernel as soft_mix

REQUESTS = dict.fromkeys(
    ("query_start_loc_ptr", "seq_lens_ptr", "block_table_ptr", "canvas_ptr", "images_ptr"), "i32"
)


def divisible(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32*16")


def attend(capability: int, shape: _config.Shape, window: int, kv: str, splits: int, images=False):
    tile = _config.tile(shape.head_dim, 2, divmod(capability, 10))
    pointers = REQUESTS | dict.fromkeys(("q_ptr", "out_ptr"), "bf16")
    pointers |= dict.fromkeys(("k_ptr", "v_ptr"), kv)
    pointers |= dict.fromkeys(("partial_ptr", "stats_ptr"), "fp32")
    strides = divisible(
        *("stride_qt", "stride_qh", "stride_ot", "stride_oh", "stride_table"),
        *("stride_kb", "stride_ks", "stride_kh", "stride_vb", "stride_vs", "stride_vh"),
    )
    constants = {
        "WINDOW": window,
        "IMAGES": images,
        "HQ": shape.kv_heads * shape.group,
        "GROUP": shape.group,
        "D": shape.head_dim,
        "PAGE": 64,
        "PARTS": 2,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_DV": tile.block_dv,
        "SPLIT": splits > 1,
        "MIN_TILES": 4,
        "PRECISION": "tf32",
    }
    scalars = strides | dict.fromkeys(("logit_scale", "v_scale"), "fp32")
    scalars |= {"N": "i32", "T": "i32"}
    launch = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compiling.compile_for(
        attention.attend, pointers, scalars, constants, capability=capability, **launch
    )


def gluon_attention(shape: _config.Shape, window: int, kv: str, split: bool, images=False):
    """bf16 queries on Hopper over a cache in bf16 or, as words, fp8."""
    kind = torch.bfloat16 if kv == "bf16" else torch.float8_e4m3fn
    config = attention_hopper.choose(shape, kind, 132)._replace(splits=2 if split else 1)
    pointers = REQUESTS | dict.fromkeys(("q_ptr", "out_ptr"), "bf16")
    pointers |= dict.fromkeys(("k_ptr", "v_ptr"), kv)
    pointers |= dict.fromkeys(("partial_ptr", "stats_ptr"), "fp32")
    strides = [n for n in _hopper_attention.attend.arg_names if n.startswith("stride_")]
    scalars = divisible(*strides) | dict.fromkeys(("logit_scale", "v_scale"), "fp32")
    scalars |= {"N": "i32", "T": "i32"}
    constants = {"WINDOW": window, "IMAGES": images, "PAGE": 64, "PARTS": 2}
    constants |= _config.constants(shape, config)
    constants |= attention_hopper.constants(shape.head_dim, kind)
    launch = {"num_warps": config.warps, "maxnreg": attention_hopper.LAUNCH}
    return compiling.compile_for(
        _hopper_attention.attend, pointers, scalars, constants, capability=90, **launch
    )


def combine(capability: int):
    pointers = dict.fromkeys(("partial_ptr", "stats_ptr"), "fp32")
    pointers |= {"out_ptr": "bf16", "query_start_loc_ptr": "i32"}
    scalars = divisible("stride_ot", "stride_oh") | {"N": "i32", "T": "i32", "v_scale": "fp32"}
    constants = {"HQ": 16, "D": 256, "SPLITS": 2}
    return compiling.compile_for(
        attention.combine, pointers, scalars, constants, capability=capability, num_warps=2
    )


def scan(capability: int):
    pointers = {"logits_ptr": "bf16", "temperature_ptr": "fp32", "sums_ptr": "fp32"}
    pointers |= {"seed_ptr": "i64", "counter_ptr": "i64", "tokens_ptr": "i32"}
    scalars = divisible("R", "V", "stride_r", "tiles") | {"group": "i32"}
    constants = {"SPLITS": 4, "SOFTCAP": 30.0}
    return compiling.compile_for(
        row_stats.scan, pointers, scalars, constants, capability=capability, num_warps=8
    )


ROWS = {"temperature_ptr": "fp32", "seed_ptr": "i64", "counter_ptr": "i64", "logits_ptr": "bf16"}


def read(capability: int):
    """`lm_head` for hidden 2816 and a vocabulary of 262,144."""
    config = lm_config.choose(divmod(capability, 10))
    pointers = ROWS | {"hidden_ptr": "bf16", "weight_ptr": "bf16"}
    pointers |= {"sums_ptr": "fp32", "tops_ptr": "fp32"}
    scalars = divisible("R", "V", "H", "TILES", "stride_h", "stride_w", "stride_l")
    scalars["group"] = "i32"
    constants = {
        "SOFTCAP": 30.0,
        "BLOCK_R": config.block_r,
        "STRIP": config.strip,
        "BLOCK_K": config.block_k,
        "EVEN_K": True,
        "EVEN_V": True,
        "FAST": True,
    }
    launch = {"num_warps": config.warps, "num_stages": config.stages}
    return compiling.compile_for(
        lm_head.read, pointers, scalars, constants, capability=capability, **launch
    )


def gluon_read():
    """The same on Hopper."""
    pointers = ROWS | {"sums_ptr": "fp32", "tops_ptr": "fp32"}
    scalars = divisible("V", "H", "TILES", "stride_l") | {"R": "i32", "group": "i32"}
    layout = _hopper_lm_head.OPERAND.value
    for name, rows in (("hidden", lm_head_hopper.ROWS), ("weight", lm_head_hopper.STRIP)):
        scalars[name] = f"tensordesc<bf16[{rows}, {lm_head_hopper.COLUMNS}],{layout!r}>"
    launch = {"num_warps": 4, "maxnreg": lm_head_hopper.REGISTERS.launch}
    constants = lm_head_hopper.constants(30.0)
    return compiling.compile_for(
        _hopper_lm_head.read, pointers, scalars, constants, capability=90, **launch
    )


def read_finish(capability: int):
    pointers = ROWS | {"argmax_ptr": "i64", "sample_ptr": "i64"}
    names = ("sums_ptr", "entropy_ptr", "max_ptr", "logsumexp_ptr", "score_ptr")
    pointers |= dict.fromkeys(names, "fp32")
    scalars = divisible("R", "V", "TILES", "stride_l") | {"group": "i32"}
    constants = {"SOFTCAP": 30.0, "STRIP": 64, "BLOCK_T": 1024}
    return compiling.compile_for(
        lm_head.finish, pointers, scalars, constants, capability=capability, num_warps=4
    )


MIXED = dict.fromkeys(("temperature_ptr", "logsumexp_ptr", "tops_ptr", "sums_ptr"), "fp32")
MIXED["local_ptr"] = "fp32"
MIXED |= dict.fromkeys(("logits_ptr", "out_ptr", "weight_ptr"), "bf16")
MIXED |= dict.fromkeys(("strips_ptr", "tokens_ptr", "counts_ptr", "order_ptr", "total_ptr"), "i32")


def mix(capability: int, fn, parts: int = 1):
    """One of `soft_mix`'s kernels, for hidden 2816 and a vocabulary of 262,144."""
    config = mix_config.choose(divmod(capability, 10))
    probs = "bf16" if fn is soft_mix.mix_all else "fp32"
    pointers = {n: k for n, k in (MIXED | {"probs_ptr": probs}).items() if n in fn.arg_names}
    numbers = ("R", "V", "H", "strips", "stride_l", "stride_p", "stride_w")
    scalars = divisible(*(n for n in numbers if n in fn.arg_names))
    scalars |= {"scale": "fp32"} if "scale" in fn.arg_names else {}
    strip = lm_config.choose(divmod(capability, 10)).strip
    shared = {"STRIP": strip, "BLOCK_S": 262144 // strip, "SOFTCAP": 30.0, "FAST": True}
    shared |= {"LEAST": mix_config.LEAST, "LEVELS": mix_config.LEVELS}
    shared |= {"DROPPED": mix_config.DROPPED, "PARTS": parts}
    shared |= {"LIMIT": mix_config.LIMIT, "BLOCK_N": 16}
    shared |= {"BLOCK": 4096 if fn is soft_mix.weigh else 1024, "SPLITS": config.splits}
    shared |= {"BLOCK_M": config.block_m, "BLOCK_K": config.block_k, "EVEN_K": True, "EVEN_H": True}
    shared["BLOCK_H"] = config.block_h if fn is soft_mix.mix_all else 512
    constants = {n: v for n, v in shared.items() if n in fn.arg_names}
    launch = {"num_warps": 8 if fn in (soft_mix.select, soft_mix.weigh) else 4}
    if fn is soft_mix.mix_all:
        launch = {"num_warps": config.warps, "num_stages": config.stages}
    return compiling.compile_for(fn, pointers, scalars, constants, capability=capability, **launch)


def canvas(capability: int, fn, constants: dict[str, int], warps: int):
    """The kernels between forwards, of 256 positions a canvas and 2816 numbers a row."""
    kinds = dict.fromkeys(("starts_ptr", "ends_ptr", "phase_ptr", "prefill_len_ptr"), "i32")
    kinds |= dict.fromkeys(("part_starts_ptr", "part_ends_ptr", "ids_ptr"), "i32")
    kinds |= dict.fromkeys(("out_text_ptr", "out_length_ptr", "out_rejected_ptr"), "i32")
    kinds |= dict.fromkeys(("bound_ptr", "confidence_ptr", "guess_entropy_ptr"), "fp32")
    kinds |= dict.fromkeys(("heat_ptr", "temperature_ptr"), "fp32")
    kinds |= dict.fromkeys(("t_min_ptr", "t_max_ptr"), "fp64")
    kinds |= {"belief_ptr": "bf16", "soft_ptr": "bf16", "denoising_ptr": "u8"}
    names = fn.arg_names
    pointers = {name: kinds.get(name, "i64") for name in names if name.endswith("_ptr")}
    scalars = dict.fromkeys([n for n in names if n not in pointers and n not in constants], "i32")
    return compiling.compile_for(
        fn, pointers, scalars, constants, capability=capability, num_warps=warps
    )


def experts(capability: int, fn, config: moe_config.Config, nvfp4: bool):
    """`gate_up` or `down` for hidden 2816 and width 704."""
    up = fn is moe.gate_up
    schedule = config.gate_up if up else config.down
    columns = 2816 if up else 704
    if nvfp4:
        schedule = moe_config.fit(schedule, columns)
    pointers = {"rows_ptr": "i32", "tiles_ptr": "i32", "h_ptr": "bf16"}
    pointers |= {"x_ptr": "bf16"} if up else {"weight_ptr": "fp32", "slots_ptr": "bf16"}
    kinds = ("i16", "u8", "fp32") if nvfp4 else ("bf16",) * 3
    pointers |= dict(zip(("w_ptr", "scales_ptr", "global_ptr"), kinds, strict=True))
    scalars = divisible("columns", "stride_h", *(("F", "stride_x") if up else ("H",)))
    scalars["TILES"] = "i32"
    constants = {
        "BLOCK_N": config.block_n,
        "TAIL_N": config.tail_n,
        "BLOCK_K": schedule.block_k,
        "FOUR_BITS": nvfp4,
        "EVEN_K": columns % schedule.block_k == 0,
    } | ({"K": 8} if up else {})
    launch = {"num_warps": schedule.warps, "num_stages": schedule.stages}
    return compiling.compile_for(fn, pointers, scalars, constants, capability=capability, **launch)


def gluon_experts(plan: hopper.Plan):
    """Both products for hidden 2816 and width 704 on Hopper."""
    pointers = dict.fromkeys(("rows_ptr", "tiles_ptr", "total_ptr", "progress_ptr"), "i32")
    pointers |= dict.fromkeys(("x_ptr", "h_ptr", "out_ptr"), "bf16")
    pointers |= dict.fromkeys(("up_global_ptr", "down_global_ptr", "weight_ptr"), "fp32")
    scalars = divisible("up_columns", "down_columns", "stride_x", "stride_h", "H")
    scalars |= dict.fromkeys(("up_blocks", "down_blocks", "TILES"), "i32")
    stages = (("codes", "i16", 16, _hopper.CODES_STAGE), ("scales", "u8", 4, _hopper.SCALES_STAGE))
    for name, kind, units, layout in stages:
        piece = f"tensordesc<{kind}[1, 1, {units}, 256],{layout.value!r}>"
        scalars |= {f"up_{name}": piece, f"down_{name}": piece}
    launch = {"num_warps": 4, "maxnreg": plan.registers.launch}
    constants = hopper.constants(plan, 8)
    return compiling.compile_for(
        _hopper.experts, pointers, scalars, constants, capability=90, **launch
    )


def add_slots(capability: int):
    pointers = {"slots_ptr": "bf16", "ids_ptr": "i32", "y_ptr": "bf16"}
    scalars = divisible("H", "E")
    constants = {"K": 8, "BLOCK": 1024}
    return compiling.compile_for(
        moe.add_slots, pointers, scalars, constants, capability=capability, num_warps=4
    )


def sort(capability: int, ids: int, tile: int):
    pointers = dict.fromkeys(("ids_ptr", "rows_ptr", "tiles_ptr", "total_ptr"), "i32")
    scalars = {"T": "i32", "TILES": "i32"}
    constants = {
        "K": 8,
        "E": 128,
        "TILE": tile,
        "FULLEST_FIRST": capability == 90,
        "BLOCK": ids,
        "BLOCK_E": 128,
    }
    return compiling.compile_for(
        moe_sort.sort,
        pointers,
        scalars,
        constants,
        capability=capability,
        num_warps=8,
    )


def fp4_experts(capability: int, fn, config: fp4_config.Config):
    """W4A4 `gate_up` or `down` for hidden 2816 and width 704."""
    up = fn is fp4.gate_up
    columns = 2816 if up else 704
    pointers = dict.fromkeys(("x_ptr", "xs_ptr", "w_ptr", "ws_ptr"), "u8")
    pointers |= dict.fromkeys(("global_ptr", "input_ptr"), "fp32") | {"tiles_ptr": "i32"}
    down = {"rows_ptr": "i32", "weight_ptr": "fp32", "slots_ptr": "bf16"}
    pointers |= {"h_ptr": "bf16"} if up else down
    constants = {
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "EVEN_K": columns % config.block_k == 0,
        "ALIGN": fp4_config.alignment(columns),
        "NATIVE": True,
    }
    scalars = divisible("C", "F" if up else "H") | {"TILES": "i32"}
    launch = {"num_warps": config.warps, "num_stages": config.stages}
    return compiling.compile_for(fn, pointers, scalars, constants, capability=capability, **launch)


def quantise(capability: int, config: fp4_config.Config, top_k: int):
    pointers = {"x_ptr": "bf16", "rows_ptr": "i32", "tiles_ptr": "i32", "input_scale_ptr": "fp32"}
    pointers |= dict.fromkeys(("codes_ptr", "scales_ptr"), "u8")
    constants = {"K": top_k, "BLOCK_N": config.block_n, "BLOCK_C": config.quantised}
    return compiling.compile_for(
        fp4.quantise, pointers, divisible("C", "stride_x") | {"TILES": "i32"}, constants,
        capability=capability, num_warps=4,
    )  # fmt: skip


def route(capability: int):
    pointers = {"scores_ptr": "bf16", "scale_ptr": "bf16", "weights_ptr": "fp32", "ids_ptr": "i32"}
    constants = {"K": 8, "BLOCK_T": 4, "BLOCK_E": 128, "BLOCK_K": 8}
    return compiling.compile_for(
        routing.route, pointers, divisible("E", "stride_t") | {"T": "i32"}, constants,
        capability=capability, num_warps=4,
    )  # fmt: skip


def norms(capability: int, fn, more: dict[str, int]):
    """more: how `enter` arranges, or how many slots `leave` adds up."""
    pointers = {name: "bf16" for name in fn.arg_names if name.endswith("_ptr")}
    pointers |= {"ids_ptr": "i32"} if more.get("K") else {}
    numbers = [n for n in fn.arg_names if n.startswith("stride_") or n in ("H", "plane", "E")]
    scalars = divisible(*numbers) | {"eps": "fp32"}
    return compiling.compile_for(
        fn, pointers, scalars, {"BLOCK": 4096} | more, capability=capability, num_warps=8
    )


def heads(capability: int, kv: int, dim: int, cache: str):
    fn, block = qkv.turned_into_cache, NUMBERS // (dim // 2)
    pointers = {name: "bf16" for name in fn.arg_names if name.endswith("_ptr")}
    pointers |= {"k_cache_ptr": cache, "v_cache_ptr": cache, "slot_mapping_ptr": "i64"}
    scalars = divisible(*(name for name in fn.arg_names if name.startswith("stride_")))
    scalars |= dict.fromkeys(("k_scale", "v_scale", "eps"), "fp32") | {"S": "i32"}
    constants = {"Q": 16, "KV": kv, "D": dim, "PAGE": 64, "BLOCK": block}
    constants |= {"PARTS": -(-(16 + 2 * kv) // block), "LEVELS": 2 if dim == 256 else 3}
    return compiling.compile_for(
        fn, pointers, scalars, constants, capability=capability, num_warps=4
    )


LOCAL = _config.Shape(256, 1, 8, 2, 256, 2, 768)
GLOBAL = LOCAL._replace(kv_heads=2, group=8, head_dim=512)


MULTIPLY = ("moe_", "lm_head")  # ops whose loops are looked at
IN_FLIGHT = ("attention_hopper", "moe_hopper")  # ... whose products are waited for by hand
READ = (*MULTIPLY, *IN_FLIGHT)


def main(capability: int) -> None:
    def report(op: str, case: str, compiled) -> None:
        used = compiling.resources(compiled)._asdict()
        ptx = compiled.asm["ptx"]
        used["wgmma"] = "wgmma.mma_async" in ptx
        left = re.findall(r"wgmma\.wait_group\S* (\d+)", ptx)
        used["in_flight"] = max(map(int, left), default=0)  # groups of products behind a wait
        text = machine_code.disassembled(compiled) if op.startswith(READ) else ""
        loops = machine_code.multiplying_loops(text) if op.startswith(MULTIPLY) else []
        used["moves"] = machine_code.count(loops, "STS|SHFL|LDG")  # to others, and loads that wait
        used["spills"] = machine_code.count(loops, "LDL|STL")
        used["too_early"] = machine_code.touched_in_flight(text) if op in IN_FLIGHT else []
        used["fp4"] = bool(re.search(r"mma\.\S*kind::mxf4nvf4\.block_scale", ptx))
        print(json.dumps({"op": op, "case": case, "sm": capability, **used}))

    for kv in ("bf16", "fp8e4nv") if capability >= 100 else ("bf16",):
        report("attention", f"local split {kv}", attend(capability, LOCAL, 1024, kv, 2))
        report("attention", f"global {kv}", attend(capability, GLOBAL, 0, kv, 1))
        report("attention", f"global split {kv}", attend(capability, GLOBAL, 0, kv, 2))
        pictures = attend(capability, LOCAL, 1024, kv, 1, images=True)
        report("attention", f"local images {kv}", pictures)
    for kv in ("bf16", "fp8e4nv") if capability >= 89 else ("bf16",):
        report("qkv", f"local {kv}", heads(capability, 8, 256, kv))
        report("qkv", f"global {kv}", heads(capability, 2, 512, kv))
    if capability == 90:
        for kv in ("bf16", "i32"):  # i32: four numbers of fp8
            split = kv == "i32"
            report("attention_hopper", f"local {kv}", gluon_attention(LOCAL, 1024, kv, split))
            report("attention_hopper", f"global {kv}", gluon_attention(GLOBAL, 0, kv, not split))
        pictures = gluon_attention(LOCAL, 1024, "bf16", False, images=True)
        report("attention_hopper", "local images bf16", pictures)
    report("attention_combine", "local", combine(capability))
    report("row_stats", "bf16", scan(capability))
    report("canvas_parts", "", canvas(capability, canvas_rows.parts, {"BLOCK": 128}, 1))
    report("canvas_rows", "", canvas(capability, canvas_rows.fill, {"BLOCK": 4096}, 8))
    report("canvas_draws", "", canvas(capability, canvas_rows.draws, {"BLOCK": 256}, 2))
    step = step_config.choose(256)
    constants = {"DOMAIN": 1, "BLOCK": step.block, "CHUNK": step.chunk}
    report("canvas_step", "", canvas(capability, canvas_step.step, constants, step.warps))
    report("lm_head", "read", read(capability))
    if capability == 90:
        report("lm_head_in_gluon", "read", gluon_read())
    report("lm_head_finish", "bf16", read_finish(capability))
    parts = (soft_mix.select, soft_mix.line_up, soft_mix.mix_few, soft_mix.weigh)
    for fn in (*parts, soft_mix.add_splits):
        report("soft_mix", fn.__name__, mix(capability, fn))
    report("soft_mix", "select of a part", mix(capability, soft_mix.select, parts=2))
    report("soft_mix_all", "bf16", mix(capability, soft_mix.mix_all))
    report("route", "bf16", route(capability))
    for name, more in (("enter", {"LANE": 0}), ("enter", {"LANE": lane(divmod(capability, 10))}),
                       ("leave", {"K": 0}), ("leave", {"K": 8})):  # fmt: skip
        report("norms", f"{name}, {more}", norms(capability, getattr(layer_norms, name), more))
    for ids, tile in ((2048, 32), (8192, 160)):
        report("moe_sort", f"{ids} ids", sort(capability, ids, tile))
    if capability == 90:
        for plan in (hopper.TABLE[0].plan, hopper.TABLE[-1].plan):
            report("moe_hopper", f"nvfp4 {plan.tile}", gluon_experts(plan))
    report("moe_add", "bf16", add_slots(capability))
    for nvfp4 in (False,) if capability == 90 else (True, False):
        for config in moe_config.shipped(nvfp4, divmod(capability, 10)):
            for fn in (moe.gate_up, moe.down):
                case = f"{fn.__name__} {'nvfp4' if nvfp4 else 'dense'} {config.block_n}"
                report("moe_gemm", case, experts(capability, fn, config, nvfp4))
    if capability >= 100:
        for _, config in fp4_config.table(divmod(capability, 10)):
            report("moe_quantise", f"{config.block_n}", quantise(capability, config, 8))
            for fn in (fp4.gate_up, fp4.down):
                case = f"{fn.__name__} {config.block_n}"
                report("moe_gemm_fp4", case, fp4_experts(capability, fn, config))


if __name__ == "__main__":
    main(int(sys.argv[1]))
