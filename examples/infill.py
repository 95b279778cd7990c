"""Edit code in the middle: `python examples/infill.py [--model MODEL]`, or `[--url URL]`.

Offline every gap is filled at once, by `infill`; a server takes one gap a request, as OpenAI's
`suffix` with `max_tokens` for its room.  Both see what stands on both sides.
"""

import argparse

from openai import OpenAI

from diffusiongemma_vllm import Gap, infill
from diffusiongemma_vllm.cli.main import MINIATURE

HEAD = "import math\n\n\ndef area(radius: float) -> float:\n    return "
TAIL = "\n\n\ndef volume(radius: float, height: float) -> float:\n    return "
END = " * height\n\n\nif __name__ == '__main__':\n    print(volume(radius=2.0, height=3.0))\n"
LICENSE = "# Copyright of somebody. " * 12 + "\n"  # with it the code is longer than a canvas
ROOM = 12


def offline(model: str) -> None:
    from vllm import LLM

    llm = LLM(model, trust_remote_code=True, max_model_len=2048, max_num_seqs=4)
    for head in (HEAD, LICENSE + HEAD):
        filled = infill(llm, [head, Gap(ROOM), TAIL, Gap(ROOM), END])
        print(f"{len(filled.text)} characters, filled with {filled.gaps}")
    print(filled.text.removeprefix(LICENSE))


def online(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    code = [HEAD, TAIL, END]
    while len(code) > 1:
        before, after = code[0], "".join(code[1:])
        text = client.completions.create(
            model=model, prompt=before, suffix=after, max_tokens=ROOM, temperature=0
        ).choices[0].text
        print(f"filled with {text!r}")
        code[:2] = [before + text + code[1]]
    print(code[0])


if __name__ == "__main__":  # vLLM starts its engine in a process that imports this file
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MINIATURE))
    parser.add_argument("--url", help="a running server, for example http://127.0.0.1:8000")
    args = parser.parse_args()
    if args.url:
        online(args.url)
    else:
        offline(args.model)
