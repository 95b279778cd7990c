"""Bodies that no server should accept: bytes, and where they go."""

import base64
import json
import sys
from pathlib import Path

MESSAGES = [{"role": "user", "content": "What is 27 + 38?"}]
OPTIONS = (
    {"prompt_logprobs": 1}, {"logit_bias": {"50000": 1}}, {"allowed_token_ids": []},
    {"seed": 2**70}, {"seed": "x"}, {"temperature": -1}, {"temperature": float("nan")},
    {"top_p": 0}, {"top_k": -5}, {"max_tokens": 10**9}, {"max_tokens": 0}, {"stop": [""]},
    {"n": 0}, {"n": 10**5}, {"use_beam_search": True, "n": 2}, {"stop_token_ids": [10**6]},
    {"vllm_xargs": {"diffusion_steps": 3}}, {"vllm_xargs": {"diffusion_max_steps": 0}},
    {"vllm_xargs": {"diffusion_template": [5, 10**6]}}, {"messages": []}, {"messages": 5},
    {"messages": [{"role": "user", "content": "a" * 50000}]}, {"model": "nobody"},
    {"tools": [{"type": "function", "function": {}}]}, {"tool_choice": "required"},
    {"chat_template": "{{ 1/0 }}"}, {"cache_salt": ""},
    {"structured_outputs": {"regex": "(["}}, {"structured_outputs": {"grammar": "root ::= ("}},
    {"response_format": {"type": "nonsense"}},
)


def _of(path: str | None = None, **body: object) -> dict:
    made = {"content": json.dumps(body).encode()}
    return made | ({"path": path} if path else {})


def _pictures() -> list[dict]:
    """Files that claim to be pictures: damaged, of another kind, or far larger than they look."""
    sys.path.append(str(Path(__file__).parents[1] / "support"))
    from hostile import images

    urls = [
        f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in images().values()
    ]
    urls += ["data:image/png;base64,no/base64!", "data:image/png,abc", "file:///etc/passwd"]
    return [
        _of(messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "a"}
        ]}])
        for url in urls
    ]


BODIES = [
    *(_of(**{"messages": MESSAGES, **options}) for options in OPTIONS),
    *(_of(**{"messages": MESSAGES, "stream": True, **options}) for options in OPTIONS[:6]),
    {"content": b""}, {"content": b"{"}, {"content": b"\xff\xfe"}, {"content": b"[1, 2]"},
    {"content": b'{"messages": ' + b"[" * 3000},
    _of("/v1/completions", prompt=[2, 5000]), _of("/v1/completions", prompt=[-1]),
    _of("/v1/completions", prompt=""), _of("/v1/completions", prompt=[5] * 100000),
    _of("/v1/completions", prompt="a", echo=True, logprobs=1), _of("/v1/nowhere", prompt="a"),
    *_pictures(),
]
