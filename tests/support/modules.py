"""vLLM's configs and modules without an engine, in this process and on the CPU."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import torch

OPTIONS = dict(skip_tokenizer_init=True, max_model_len=1024, dtype="float32")


def engine_config(model, **options):
    """The config that an engine with these ``EngineArgs`` would have."""
    from vllm import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return EngineArgs(model=str(model), **OPTIONS | options).create_engine_config()


@contextmanager
def building(config, device: str = "cpu"):
    """Where vLLM's layers can be made: current config, one process, the model's dtype."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
        model_parallel_is_initialized,
    )
    from vllm.utils.network_utils import get_open_port
    from vllm.utils.torch_utils import set_default_torch_dtype

    running = model_parallel_is_initialized()  # an engine in this process has done it
    with set_current_vllm_config(config):
        if not running:
            address = f"tcp://127.0.0.1:{get_open_port()}"
            init_distributed_environment(1, 0, address, 0, backend="gloo")
            initialize_model_parallel()
        try:
            with set_default_torch_dtype(config.model_config.dtype), torch.device(device):
                yield
        finally:
            if not running:
                cleanup_dist_env_and_memory()


def empty(config):
    """Our model without weights, inside ``building``."""
    from vllm.model_executor.model_loader.utils import initialize_model

    return initialize_model(config)


def load(folder):
    """Our model with a checkpoint's weights, ready to run."""
    config = engine_config(folder)
    with building(config):
        return filled(config, folder)


def filled(config, folder):
    """The same, inside ``building``."""
    from safetensors.torch import load_file
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    config.compilation_config.static_forward_context.clear()  # of another model's layers
    model = empty(config)
    model.load_weights(load_file(Path(folder, "model.safetensors")).items())
    process_weights_after_loading(model, config.model_config, torch.device("cpu"))
    return model.eval()


def reference(model):
    """transformers' model of the same checkpoint."""
    from transformers import DiffusionGemmaForBlockDiffusion

    return DiffusionGemmaForBlockDiffusion.from_pretrained(
        model, dtype=torch.float32, experts_implementation="eager"
    ).eval()


def edit_json(path: Path, **changes) -> None:
    """Set fields of a JSON file; None drops one.  ``a__b`` is the field b of a."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        owner = content
        for parent in parents:
            owner = owner[parent]
        if value is None:
            owner.pop(leaf)
        else:
            owner[leaf] = value
    path.write_text(json.dumps(content))


def edit_tensors(folder: Path, edit) -> None:
    """Rewrite the weights of a checkpoint after ``edit(tensors)`` has changed the dict."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
