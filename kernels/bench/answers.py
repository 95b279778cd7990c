"""answers.py OUT.jsonl [--against OTHER.jsonl] [--native]: the miniature's 200 held-out prompts.

One line a prompt: its number, its answer's tokens, and whether it is the expected one.  With
--against, how many of OTHER's answers are other ones: a CPU's beside a GPU's, or one batch size's
beside another's.  A request's noise is its seed's, so equal arithmetic gives equal answers; vLLM's
own implementation (--native) takes no seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/miniature"))

from data import heldout  # noqa: E402
from offline import start  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--batch", type=int, default=16, help="requests at once")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--native", action="store_true", help="vLLM's own implementation")
    parser.add_argument("--kw", default="{}", help="further arguments of vllm.LLM, as JSON")
    args = parser.parse_args()
    if args.native:
        os.environ["VLLM_PLUGINS"] = ""
    settings = dict(max_model_len=2048, max_num_seqs=args.batch, enable_prefix_caching=False)
    llm = start(**settings | json.loads(args.kw))
    tokenizer = llm.get_tokenizer()
    examples = heldout(args.prompts)
    prompts = [
        {
            "prompt_token_ids": tokenizer.apply_chat_template(
                one.messages, tools=one.tools or None, enable_thinking=one.enable_thinking,
                add_generation_prompt=True, return_dict=True,
            )["input_ids"]
        }
        for one in examples
    ]  # fmt: skip
    params = []
    for number in range(len(prompts)):
        own = llm.get_default_sampling_params()
        own.max_tokens, own.skip_special_tokens = 1024, False
        own.seed = None if args.native else number
        params.append(own)
    replies = llm.generate(prompts, params)
    right = 0
    with args.out.open("w") as file:
        for number, (reply, one) in enumerate(zip(replies, examples, strict=True)):
            answer = list(reply.outputs[0].token_ids)
            correct = tokenizer.decode(answer) == one.answer
            right += correct
            line = {"prompt": number, "tokens": answer, "correct": correct}
            file.write(json.dumps(line) + "\n")
    print(f"{right} of {len(replies)} answers are the expected ones")
    if args.against:
        theirs = [json.loads(line)["tokens"] for line in args.against.read_text().splitlines()]
        mine = [list(reply.outputs[0].token_ids) for reply in replies]
        other = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
        print(f"{len(other)} of {len(mine)} differ from {args.against.name}: {other}")


if __name__ == "__main__":
    main()
