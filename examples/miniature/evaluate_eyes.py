"""Ask the miniature about held-out pictures through vLLM, and print what it gets right.

    python examples/miniature/evaluate_eyes.py [--n 200] [--model DIR]

On a GPU in BF16 with CUDA graphs, elsewhere in FP32.  A film is handed over as its two frames.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from data import CHECKPOINT
from drawings import TASKS, heldout
from offline import start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="held-out pictures, of all tasks")
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--verbose", action="store_true", help="print the wrong answers")
    args = parser.parse_args()
    llm = start(model=str(args.model), max_model_len=1024, max_num_seqs=8)
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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"device": device, **{key: round(value, 4) for key, value in result.items()}}))


if __name__ == "__main__":
    main()
