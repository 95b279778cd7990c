"""The shipped miniature, calibrated and quantised, still answers through our engine on CPU."""

import json
import sys
from pathlib import Path

import pytest
from engine import engine

EXAMPLES = Path(__file__).parents[2] / "examples" / "miniature"
pytestmark = pytest.mark.engine
SHARE = 0.93


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """The miniature in NVFP4, calibrated with four chats that are not held out."""
    sys.path.insert(0, str(EXAMPLES))
    from data import CHECKPOINT

    from diffusiongemma_vllm.cli.main import main

    folder = tmp_path_factory.mktemp("miniature")
    chats = folder / "chats.jsonl"
    chats.write_text("".join(
        json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n"
        for text in ("What is 11 + 12?", "Count from 1 to 12.", "Reverse: red blue green", "Hi")
    ))
    made = folder / "nvfp4"
    assert main(["quantize", str(CHECKPOINT), str(made), "--calibration", str(chats)]) == 0
    return made


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)])
def test_heldout_prompts_are_answered(quantised, every):
    """Of all 200, with the KV cache in FP8 as the checkpoint says."""
    from data import heldout
    from tokens import STOP, encode
    from vllm import SamplingParams

    examples = heldout(200)[::every]
    with engine(quantised, max_model_len=2048) as llm:
        assert llm.llm_engine.vllm_config.cache_config.cache_dtype.startswith("fp8")
        said = llm.generate(
            [{"prompt_token_ids": encode(e.prompt)} for e in examples],
            [
                SamplingParams(
                    max_tokens=1024, seed=i, stop_token_ids=sorted(STOP), detokenize=False
                )
                for i in range(len(examples))
            ],
            use_tqdm=False,
        )
    right = [
        list(out.outputs[0].token_ids) == encode(e.answer)
        for e, out in zip(examples, said, strict=True)
    ]
    wrong = [e.task for e, ok in zip(examples, right, strict=True) if not ok]
    assert sum(right) >= SHARE * len(examples), wrong


def test_every_projection_has_its_input_scale(quantised):
    """One value a layer for gate and up, one for down, as NVIDIA's checkpoint has them."""
    from safetensors.torch import load_file

    scales: dict[tuple[str, bool], set[float]] = {}
    for name, tensor in load_file(quantised / "model.safetensors").items():
        if name.endswith(".input_scale"):
            layer, projection = name.split(".experts.")
            scales.setdefault((layer, "down" in projection), set()).add(tensor.item())
    assert len(scales) == 12 and all(len(values) == 1 for values in scales.values())
    config = json.loads((quantised / "config.json").read_text())["quantization_config"]
    assert config["quant_algo"] == "NVFP4"
