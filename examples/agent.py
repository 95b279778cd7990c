"""A tool loop with OpenAI's client: `python examples/agent.py [--url URL]` (or starts a server)."""

import argparse
import json
from contextlib import nullcontext
from types import SimpleNamespace

from openai import OpenAI

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.cli.server import serving

FUNCTIONS = {
    "get_weather": lambda city: {"Paris": "sunny, 21 degrees"}.get(city, "unknown"),
    "add": lambda a, b: str(a + b),
}


def tool(name: str, description: str, **types: str) -> dict:
    properties = {key: {"type": kind} for key, kind in types.items()}
    schema = {"type": "object", "properties": properties, "required": list(types)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    tool("get_weather", "Weather in a city", city="string"),
    tool("add", "Add two numbers", a="integer", b="integer"),
]


def run(client: OpenAI, messages: list[dict]) -> str:
    """Ask, make the calls, tell their results, until the model answers in words."""
    model = client.models.list().data[0].id
    while True:
        reply = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, temperature=0
        ).choices[0].message
        # the large model reads its thought again; the miniature has not learned to
        messages.append(reply.model_dump(exclude_none=True, exclude={"reasoning"}))
        if not reply.tool_calls:
            return reply.content or ""
        for call in reply.tool_calls:
            given = json.loads(call.function.arguments)
            result = FUNCTIONS[call.function.name](**given)
            print(f"{call.function.name}({given}) -> {result}", flush=True)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running server, for example http://127.0.0.1:8000")
    url = parser.parse_args().url
    with nullcontext(SimpleNamespace(url=url)) if url else serving(str(MINIATURE)) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        for question in ("What is the weather in Paris?", "Use the tool to add 123 and 456."):
            print(run(client, [{"role": "user", "content": question}]), flush=True)
