"""Ask the miniature about held-out pictures through vLLM, and print what it gets right.

    python examples/miniature/evaluate_eyes.py [--n 200] [--model DIR]

On a GPU in BF16 with CUDA graphs, elsewhere in FP32.  A film is handed over as its two frames.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="held-out pictures, of all tasks")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print the wrong answers")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import torch

    gpu = torch.cuda.is_available()
    if not gpu:  # before vLLM looks for Triton
        os.environ.setdefault("DIFFUSIONGEMMA_VLLM_INTERPRETER", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from data import CHECKPOINT
    from drawings import TASKS, heldout
    from vllm import LLM

    llm = LLM(
        model=str(args.model or CHECKPOINT), trust_remote_code=True, max_model_len=1024,
        max_num_seqs=8, dtype="bfloat16" if gpu else "float32", gpu_memory_utilization=0.3,
    )  # fmt: skip
    examples = heldout(args.n)
    prompts = []
    for one in examples:
        shown = {"image": one.pictures[0]}
        if one.task == "change":
            shown = {"video": list(one.pictures)}
        prompts.append({"prompt": one.prompt, "multi_modal_data": shown})
    params = []
    for number in range(len(prompts)):
        own = llm.get_default_sampling_params()
        own.seed, own.max_tokens = number, 256
        params.append(own)
    right: Counter[str] = Counter()
    for one, reply in zip(examples, llm.generate(prompts, params), strict=True):
        said = reply.outputs[0].text
        right[one.task] += said == one.answer
        if args.verbose and said != one.answer:
            print(f"{one.task}: {said!r} where {one.answer!r} is right")
    asked = Counter(one.task for one in examples)
    shares = {task: right[task] / asked[task] for task in TASKS if asked[task]}
    for task, share in shares.items():
        print(f"{task:8s} {share:7.1%}")
    result = {"n": len(examples), "all": right.total() / len(examples), **shares}
    device = torch.cuda.get_device_name() if gpu else "cpu"
    print(json.dumps({"device": device, **{key: round(value, 4) for key, value in result.items()}}))


if __name__ == "__main__":
    main()
