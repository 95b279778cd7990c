"""Raw prompts without a server: `python examples/offline_generate.py [MODEL]`."""

import sys

from vllm import LLM, SamplingParams

from diffusiongemma_vllm.cli.main import MINIATURE

# Gemma's turns by hand; the closed thought says: answer without thinking
TURN = "<bos><|turn>user\n{}<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
PROMPTS = ["Reverse these words: boat lamp salt", "Count from 10 to 25."]


def main(model: str) -> None:
    llm = LLM(model, trust_remote_code=True, max_model_len=2048, max_num_seqs=4)
    params = SamplingParams(temperature=0, max_tokens=300)
    for reply in llm.generate([TURN.format(prompt) for prompt in PROMPTS], params):
        answer = reply.outputs[0]
        print(f"{answer.text!r} ({len(answer.token_ids)} tokens, {answer.finish_reason})")


if __name__ == "__main__":  # vLLM starts its engine in a process that imports this file
    main(sys.argv[1] if len(sys.argv) > 1 else str(MINIATURE))
