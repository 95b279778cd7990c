"""transformers' own ``generate`` as a model that lm-eval can ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from diffusiongemma_vllm.evaluation import turns
from diffusiongemma_vllm.evaluation.benchmark import Benchmark

MAX_NEW_TOKENS = 1024


class Generated(LM):
    """Answers chats one by one, by the checkpoint's generation config, FP32 on CPU."""

    def __init__(self, folder: Path, benchmark: Benchmark, seed: int = 0) -> None:
        from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion

        super().__init__()
        self.benchmark, self.seed = benchmark, seed
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.network: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        ends = self.network.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        bar = tqdm(requests, desc=f"{self.benchmark.title}, transformers", unit="answer")
        return [self._answer(one) for one in bar]

    def _answer(self, one: Instance) -> str:
        asked: dict[str, Any] = self.benchmark.chat.request(one.doc, one.args[0])
        messages = [_parsed(message) for message in asked["messages"]]
        prompt = self.tokenizer.apply_chat_template(
            messages, tools=asked.get("tools"), add_generation_prompt=True, return_dict=True,
            return_tensors="pt", **asked["chat_template_kwargs"],
        )["input_ids"]
        torch.manual_seed(self.seed)
        with torch.inference_mode():
            output = self.network.generate(prompt, max_new_tokens=MAX_NEW_TOKENS)
        answer = output.sequences[0, prompt.shape[1] :].tolist()
        end = next((i for i, token in enumerate(answer) if token in self.ends), len(answer))
        return turns.from_text(self.tokenizer.decode(answer[:end]))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("a diffusion model has no likelihood of a text")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError("a diffusion model has no likelihood of a text")


def _parsed(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the OpenAI API for the chat template, which takes arguments as an object."""
    calls = [
        {**call, "function": {**call["function"],
                              "arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message} | ({"tool_calls": calls} if calls else {})
