"""The largest activation that each layer's experts see, counted by NVIDIA's ModelOpt.

The published recipe: ``huggingface/diffusion_gemma/ptq/nvfp4_experts_only`` of modelopt, algorithm
``max``, over whole answers (``generate``), so that prompts and canvases are both seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusiongemma_vllm import checkpoint
from diffusiongemma_vllm.quantize.source import DOWN, GATE_UP

RECIPE = "huggingface/diffusion_gemma/ptq/nvfp4_experts_only"
DATASETS = ("cnn_dailymail", "nemotron-post-training-dataset-v2")
PROMPT_TOKENS = 512
STACKS = ("model.decoder", "model.encoder.language_model")  # one set of weights in two modes

Encode = Callable[[Any], list[int]]


def texts(calibration: str, samples: int) -> list[Any]:
    """Texts, or lists of chat messages.

    calibration: "datasets", or the path of a file with one JSON object a line, which holds
    ``text`` or ``messages``.

    Raises:
        ValueError: where the data sets cannot be had, or the file's first wrong line.
    """
    if calibration == "datasets":
        return _from_hub(samples)
    path = Path(calibration)
    if not path.is_file():
        raise ValueError(
            f"--calibration {calibration} is no file: pass a .jsonl file, datasets, or none"
        )
    found: list[Any] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if len(found) < samples and line.strip():
                    found.append(_entry(path, number, line))
    except UnicodeDecodeError as error:
        raise ValueError(f"--calibration {path} is not UTF-8 ({error}); convert it") from None
    if not found:
        raise ValueError(f"--calibration {path} holds no line: give it some texts")
    return found


def _entry(path: Path, number: int, line: str) -> Any:
    try:
        entry = json.loads(line)
        value = entry.get("messages") or entry.get("text")
    except (ValueError, AttributeError):
        value = None
    chat = isinstance(value, list) and all(isinstance(one, dict) and "role" in one for one in value)
    if not value or not (chat or isinstance(value, str)):
        raise ValueError(
            f"--calibration {path}, line {number}: every line must be a JSON object with a string "
            "'text' or a list 'messages' of objects with a role; correct or delete the line"
        )
    return value


def _from_hub(samples: int) -> list[str]:
    from modelopt.torch.utils.dataset_utils import get_dataset_samples

    found: list[str] = []
    for name in DATASETS:
        try:
            found += get_dataset_samples(name, -(-samples // len(DATASETS)))
        except Exception as error:
            raise ValueError(
                f"--calibration datasets: {name} cannot be had ({type(error).__name__}: {error}). "
                "It needs `pip install datasets`, the network, and for Nemotron an account that "
                "accepted its licence; pass a .jsonl file of your own, or none"
            ) from None
    return found


def encoder(folder: Path) -> Encode:
    """The checkpoint's tokenizer: chats by its template, texts as they are, cut to 512 tokens.

    It raises ValueError for messages that the template does not take.

    Raises:
        ValueError: where the checkpoint holds no tokenizer.
    """
    from transformers import AutoTokenizer

    checkpoint.check_tokenizer(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def encode(entry: Any) -> list[int]:
        if isinstance(entry, str):
            ids = tokenizer(entry)["input_ids"]
        else:
            try:
                ids = tokenizer.apply_chat_template(
                    entry, add_generation_prompt=True, return_dict=True
                )["input_ids"]
            except Exception as error:  # whatever the template's expressions raise
                raise ValueError(
                    f"--calibration: the checkpoint's chat template does not take the messages "
                    f"{str(entry)[:80]} ({error}); correct or delete the line"
                ) from None
        return list(ids)[-PROMPT_TOKENS:]

    return encode


def calibrate(folder: Path, prompts: Sequence[list[int]], device: str) -> dict[str, float]:
    """Fused tensor's name -> largest activation in front of it.  Holds the whole model in memory.

    Raises:
        ValueError: naming a layer whose experts saw nothing.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.recipe import load_recipe
    from transformers import DiffusionGemmaForBlockDiffusion

    model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype="auto")
    model = model.to(device).eval()

    def answer(model: Any) -> None:
        for seed, prompt in enumerate(tqdm(prompts, unit="prompt", desc="calibrating")):
            torch.manual_seed(seed)
            ids = torch.tensor([prompt], device=device)
            model.generate(ids, max_new_tokens=model.config.canvas_length)

    mtq.quantize(model, load_recipe(RECIPE).quantize.model_dump(), answer)
    found = {}
    for layer in range(model.config.text_config.num_hidden_layers):
        for leaf in (GATE_UP, DOWN):
            quantizers = [
                model.get_submodule(f"{stack}.layers.{layer}.experts.{leaf}_input_quantizer")
                for stack in STACKS
            ]
            seen: list[Any] = [q.amax for q in quantizers if q.amax is not None]
            name = f"model.decoder.layers.{layer}.experts.{leaf}"
            largest = max((float(amax) for amax in seen), default=0.0)
            if not 0 < largest < float("inf"):
                raise ValueError(
                    f"{name} saw no activation above zero that is finite ({largest}): calibrate "
                    "with more texts, or check the BF16 checkpoint"
                )
            found[name] = largest
    return found
