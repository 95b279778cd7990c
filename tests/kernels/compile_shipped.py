"""compile_shipped.py CAPABILITY: one JSON line for each kernel of the model's shapes."""

import json
import sys

from diffusiongemma_kernels import compiling
from diffusiongemma_kernels.attention import _config
from diffusiongemma_kernels.attention import _kernel as attention
from diffusiongemma_kernels.kv_write import _kernel as kv_write
from diffusiongemma_kernels.row_stats import _kernel as row_stats

REQUESTS = dict.fromkeys(
    ("query_start_loc_ptr", "seq_lens_ptr", "block_table_ptr", "canvas_ptr"), "i32"
)


def divisible(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32*16")


def attend(capability: int, shape: _config.Shape, window: int, kv: str, splits: int):
    tile = _config.tile(shape.head_dim, 2, divmod(capability, 10))
    pointers = REQUESTS | dict.fromkeys(("q_ptr", "out_ptr"), "bf16")
    pointers |= dict.fromkeys(("k_ptr", "v_ptr"), kv)
    pointers |= dict.fromkeys(("partial_ptr", "stats_ptr"), "fp32")
    strides = divisible(
        *("T", "stride_qt", "stride_qh", "stride_ot", "stride_oh", "stride_table"),
        *("stride_kb", "stride_ks", "stride_kh", "stride_vb", "stride_vs", "stride_vh"),
    )
    constants = {
        "WINDOW": window,
        "HQ": shape.kv_heads * shape.group,
        "GROUP": shape.group,
        "D": shape.head_dim,
        "PAGE": 64,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_DV": tile.block_dv,
        "SPLITS": splits,
        "MIN_TILES": 4,
        "PRECISION": "tf32",
        "N": 1,
    }
    scalars = strides | dict.fromkeys(("logit_scale", "v_scale"), "fp32")
    launch = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compiling.compile_for(
        attention.attend, pointers, scalars, constants, capability=capability, **launch
    )


def combine(capability: int):
    pointers = dict.fromkeys(("partial_ptr", "stats_ptr"), "fp32")
    pointers |= {"out_ptr": "bf16", "query_start_loc_ptr": "i32"}
    scalars = divisible("T", "stride_ot", "stride_oh") | {"N": "i32", "v_scale": "fp32"}
    constants = {"HQ": 16, "D": 256, "SPLITS": 2}
    return compiling.compile_for(
        attention.combine, pointers, scalars, constants, capability=capability, num_warps=2
    )


def scan(capability: int):
    pointers = {"logits_ptr": "bf16", "temperature_ptr": "fp32", "sums_ptr": "fp32"}
    pointers |= {"seed_ptr": "i64", "counter_ptr": "i64", "tokens_ptr": "i32"}
    scalars = divisible("R", "V", "stride_r", "tiles")
    constants = {"SPLITS": 4, "SOFTCAP": 30.0}
    return compiling.compile_for(
        row_stats.scan, pointers, scalars, constants, capability=capability, num_warps=8
    )


def write(capability: int, cache: str):
    pointers = {"key_ptr": "bf16", "value_ptr": "bf16", "slot_mapping_ptr": "i64"}
    pointers |= {"k_cache_ptr": cache, "v_cache_ptr": cache}
    names = [n for n in kv_write.write.arg_names if n.startswith("stride_")]
    scalars = divisible(*names) | {"k_scale": "fp32", "v_scale": "fp32"}
    constants = {"WIDTH": 2048, "D": 256, "PAGE": 64, "BLOCK": 2048, "FP8": cache != "bf16"}
    return compiling.compile_for(
        kv_write.write, pointers, scalars, constants, capability=capability, num_warps=4
    )


LOCAL = _config.Shape(256, 1, 8, 2, 256, 2, 256, 768)
GLOBAL = LOCAL._replace(kv_heads=2, group=8, head_dim=512)


def main(capability: int) -> None:
    def report(op: str, case: str, compiled) -> None:
        used = compiling.resources(compiled)._asdict()
        wgmma = "wgmma.mma_async" in compiled.asm["ptx"]
        print(json.dumps({"op": op, "case": case, "sm": capability, **used, "wgmma": wgmma}))

    for kv in ("bf16", "fp8e4nv") if capability >= 89 else ("bf16",):
        report("attention", f"local split {kv}", attend(capability, LOCAL, 1024, kv, 2))
        report("attention", f"global {kv}", attend(capability, GLOBAL, 0, kv, 1))
        report("kv_write", kv, write(capability, kv))
    report("attention_combine", "local", combine(capability))
    report("row_stats", "bf16", scan(capability))


if __name__ == "__main__":
    main(int(sys.argv[1]))
