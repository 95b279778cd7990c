"""Turns run through the parsers as vLLM's handlers run them."""

from typing import Any

from turns import Tokenizer, tokenized
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.abstract_parser import DelegatingParser

from diffusiongemma_vllm.parsers.reasoning import Gemma4ReasoningParser
from diffusiongemma_vllm.parsers.tools import Gemma4ToolParser


class Pair(DelegatingParser):
    """As vLLM composes two parsers."""

    reasoning_parser_cls = Gemma4ReasoningParser
    tool_parser_cls = Gemma4ToolParser


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    }
    for name in ("f", "g")
]
NEW_TURN = "<|turn>user\nHi<turn|>\n<|turn>model\n"
OPEN = "<|tool_response>response:f{}<tool_response|><|channel>thought\n"
F, G = '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>', "<|tool_call>call:g{a:5}<tool_call|>"
TOKENIZER = Tokenizer()


def request(**options: Any) -> ChatCompletionRequest:
    options.setdefault("tools", TOOLS)
    message = {"role": "user", "content": "Hi"}
    return ChatCompletionRequest(model="m", messages=[message], **options)


class Run:
    """One turn through a parser, whole and streamed."""

    def __init__(
        self,
        composed: type,
        text: str,
        asked: Any = None,
        prompt: str = NEW_TURN,
        thinking: bool = True,
    ) -> None:
        self.composed, self.asked, self.thinking = composed, asked or request(), thinking
        self.prompt = TOKENIZER.encode(prompt)
        self.tokens = TOKENIZER.tokens(text)
        self.text = text

    def parser(self) -> Any:
        template = {"enable_thinking": self.thinking}
        return self.composed(TOKENIZER, self.asked.tools, chat_template_kwargs=template)

    def whole(self) -> tuple[str, str, list[tuple[str, str]]]:
        parser = self.parser()
        parser.set_prompt_token_ids(self.prompt)
        ids = [i for i, _ in self.tokens]
        reasoning, content, calls = parser.parse(self.text, self.asked, True, ids)
        return reasoning or "", content or "", [(c.name, c.arguments) for c in calls or []]

    def deltas(self, size: int) -> list[DeltaMessage]:
        parser, chunks = self.parser(), tokenized(self.tokens, size)
        said = [
            parser.parse_delta(
                text, ids, self.asked, prompt_token_ids=self.prompt, finished=i == len(chunks)
            )
            for i, (text, ids) in enumerate(chunks, 1)
        ]
        return [delta for delta in said if delta is not None]

    def streamed(self, size: int) -> tuple[str, str, list[tuple[str, str]]]:
        reasoning = content = ""
        calls: list[Any] = []
        for delta in self.deltas(size):
            reasoning += delta.reasoning or ""
            content += delta.content or ""
            for call in delta.tool_calls:
                if call.id is not None:
                    assert call.index == len(calls) and call.type == "function"
                    calls.append([call.function.name, ""])
                else:
                    assert call.index == len(calls) - 1 and call.function.name is None
                calls[call.index][1] += call.function.arguments or ""
        return reasoning, content, [(name, arguments) for name, arguments in calls]

    def check(self, reasoning: str, content: str, calls: list[tuple[str, str]]) -> None:
        wanted = (reasoning, content, calls)
        for size in (1, 3, 16, 256):
            assert self.streamed(size) == wanted, size
        assert self.whole() == wanted
