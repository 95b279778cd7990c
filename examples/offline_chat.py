"""Chats without a server, with and without thinking: `python examples/offline_chat.py [MODEL]`."""

import sys

from vllm import LLM, SamplingParams

from diffusiongemma_vllm.cli.main import MINIATURE

QUESTIONS = ["What is 27 + 38?", "Reverse these words: boat lamp salt"]


def main(model: str) -> None:
    llm = LLM(model, trust_remote_code=True, max_model_len=2048, max_num_seqs=4)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    for thinking in (False, True):
        params = SamplingParams(temperature=0, max_tokens=300, skip_special_tokens=not thinking)
        replies = llm.chat(chats, params, chat_template_kwargs={"enable_thinking": thinking})
        for question, reply in zip(QUESTIONS, replies, strict=True):
            thought, _, answer = reply.outputs[0].text.rpartition("<channel|>")
            if thought:
                print("(thought)", thought.removeprefix("<|channel>thought").strip())
            print(question, "->", answer.removesuffix("<turn|>"))


if __name__ == "__main__":  # vLLM starts its engine in a process that imports this file
    main(sys.argv[1] if len(sys.argv) > 1 else str(MINIATURE))
