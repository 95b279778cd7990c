"""What shorter canvases cost: exact answers, denoise steps and forwards of the held-out prompts.

    python examples/miniature/canvas_length.py [--n 200] [--lengths 64 128 256]

Every request asks for its length with `diffusion_canvas_length`; one engine serves them all.
"""

import argparse
import json

from data import CHECKPOINT, heldout
from offline import start
from tokens import STOP, encode


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare lengths of canvases on the miniature.")
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    args = parser.parse_args()
    examples = heldout(args.n)
    prompts = [{"prompt_token_ids": encode(example.prompt)} for example in examples]
    llm = start(model=args.model, dtype="float32", max_model_len=2048, max_num_seqs=8)
    from vllm import SamplingParams  # after the engine has prepared for a CPU

    for length in args.lengths:
        params = [
            SamplingParams(
                max_tokens=1024, seed=seed, stop_token_ids=sorted(STOP), detokenize=False,
                extra_args={"diffusion_canvas_length": length},
            )
            for seed in range(len(prompts))
        ]
        answers = [output.outputs[0] for output in llm.generate(prompts, params)]
        exact = sum(
            list(answer.token_ids) == encode(example.answer)
            for answer, example in zip(answers, examples, strict=True)
        )
        canvases = [canvas for answer in answers for canvas in answer.diffusion["canvases"]]
        count = len(answers)
        print(json.dumps({
            "canvas_length": length,
            "exact": exact / count,
            "canvases": len(canvases) / count,
            "steps": sum(canvas["steps"] for canvas in canvases) / count,
            "forwards": sum(answer.diffusion["forwards"] for answer in answers) / count,
        }), flush=True)


if __name__ == "__main__":
    main()
