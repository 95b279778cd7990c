"""Score a checkpoint on the held-out prompts with transformers' own generate().

    python examples/miniature/evaluate.py --model DIR [--n 200] [--device cpu]

Prompts go one by one through the tokenizer's chat template and the checkpoint's generation config.
Prints exact match per task, the denoise steps a canvas (counted as decoder passes) and a JSON line.
"""

import argparse
import json
from statistics import median, quantiles

import torch
from data import CHECKPOINT, Example, heldout, table
from tokens import STOP
from tqdm import tqdm
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion


class Generator:
    """A checkpoint with its tokenizer; counts the denoise steps of every canvas."""

    def __init__(self, folder: str, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=dtype)
        self.model = model.to(device).eval()
        self.steps: list[int] = []
        # the encoder runs once a canvas, the decoder once a step
        model.model.encoder.register_forward_hook(lambda *_: self.steps.append(0))
        model.model.decoder.register_forward_hook(lambda *_: self._step())

    def _step(self) -> None:
        self.steps[-1] += 1

    def __call__(self, example: Example, seed: int = 0) -> str:
        """The answer to one example, up to and with its stop token."""
        torch.manual_seed(seed)
        ids = self.tokenizer.apply_chat_template(
            example.messages,
            tools=example.tools or None,
            enable_thinking=example.enable_thinking,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
        output = self.model.generate(ids.to(self.model.device), max_new_tokens=1024)
        answer = output.sequences[0, ids.shape[1] :].tolist()
        end = next((i + 1 for i, token in enumerate(answer) if token in STOP), len(answer))
        return self.tokenizer.decode(answer[:end])


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the miniature on held-out prompts.")
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--verbose", action="store_true", help="print the wrong answers")
    args = parser.parse_args()
    generate = Generator(args.model, args.device, getattr(torch, args.dtype))
    examples = heldout(args.n)
    answers = [generate(example) for example in tqdm(examples, unit="prompt")]
    correct = [a == e.answer for a, e in zip(answers, examples, strict=True)]
    exact = table(correct, examples)
    print(f"{'task':12s}  exact")
    for task, share in exact.items():
        print(f"{task:12s} {share:6.1%}")
    for answer, example in zip(answers, examples, strict=True):
        if args.verbose and answer != example.answer:
            print(f"{example.task}: {example.prompt[-80:]!r}\n  {answer!r}\n  {example.answer!r}")
    steps = generate.steps
    p95 = quantiles(steps, n=20, method="inclusive")[-1] if len(steps) > 1 else steps[0]
    print(f"denoise steps a canvas: median {median(steps):g}, 95th percentile {p95:g}")
    result = {"model": args.model, "n": args.n, "device": args.device, "dtype": args.dtype}
    result |= {"exact": {k: round(v, 4) for k, v in exact.items()}}
    print(json.dumps(result | {"steps_median": median(steps), "steps_p95": p95}))


if __name__ == "__main__":
    main()
