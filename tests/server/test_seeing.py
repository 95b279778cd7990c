"""The miniature's held-out pictures and films, through the OpenAI client."""

import base64
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import clip
from pictures import encoded

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "miniature"))

from drawings import heldout  # noqa: E402

ASKED = 40


def part(one):
    """A picture as a PNG, a film as an MP4 of a frame a second."""
    kind, data = "image", encoded(one.pictures[0])
    if one.task == "change":
        kind, data = "video", clip([np.asarray(frame) for frame in one.pictures], rate=1)
    form = "video/mp4" if kind == "video" else "image/png"
    url = f"data:{form};base64,{base64.b64encode(data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def test_held_out_pictures_are_told(chat):
    wrong = []
    for one in heldout(ASKED):
        message = {"role": "user", "content": [part(one), {"type": "text", "text": one.question}]}
        said = chat([message], max_tokens=32, temperature=1, seed=0).choices[0].message.content
        if said != one.answer:
            wrong.append((one.task, said, one.answer))
    assert len(wrong) <= ASKED // 20, wrong
