"""Make vLLM resolve the parser name `gemma4` to ours, for DiffusionGemma checkpoints only.

vLLM resolves parser names in three places, and none of its registries knows the model:

* the API server: `ParserManager.get_parser(tool_parser_name=.., reasoning_parser_name=..,
  model_name=..)`, called by the chat, Responses and Anthropic handlers and by the renderers;
* the engine core: `StructuredOutputManager` looks `structured_outputs_config.reasoning_parser` up;
* `ReasoningConfig`, for a thinking budget.

Replacing the entry `gemma4` would take plain Gemma 4 along.  So ours are registered under a name of
their own, and a model's configuration decides: vLLM runs the hooks in `MODELS_CONFIG_MAP` for one
architecture whenever a process makes such a configuration, before anything resolves a name.  Ours

* notes the model's name, by which the wrapped `get_parser` reads `gemma4` as `diffusiongemma`;
* renames the reasoning parser in the VllmConfig itself, which travels to the engine core (as vLLM's
  own hook for gpt-oss does).

Every other model never enters the hook: its `gemma4` is vLLM's, untouched.
"""

import inspect
from typing import TYPE_CHECKING, Any

from diffusiongemma_vllm.compat import ARCHITECTURE, patch

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

GEMMA4 = "gemma4"  # what users ask for
OURS = "diffusiongemma"  # what it means for a DiffusionGemma checkpoint

_models: set[str] = set()  # as `ModelConfig.model` names them, in this process


def register() -> None:
    """Install everything; call it once the plugin's own MODELS_CONFIG_MAP entry is in place."""
    add_names()
    watch_configurations()
    dispatch_names()


def add_names() -> None:
    """Our parsers under our own name, loaded when first asked for."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    package = "diffusiongemma_vllm.parsers"
    ToolParserManager.register_lazy_module(OURS, f"{package}.tools", "Gemma4ToolParser")
    ReasoningParserManager.register_lazy_module(
        OURS, f"{package}.reasoning", "Gemma4ReasoningParser"
    )


def watch_configurations() -> None:
    """Have DiffusionGemma's configuration hooks call `note_model` and `rename_in`."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    base: Any = MODELS_CONFIG_MAP.get(ARCHITECTURE, VerifyAndUpdateConfig)
    if getattr(base, "chooses_parsers", False):
        return

    class ChoosesParsers(base):
        chooses_parsers = True

        @staticmethod
        def verify_and_update_model_config(model_config: "ModelConfig") -> None:
            base.verify_and_update_model_config(model_config)
            note_model(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: "VllmConfig") -> None:
            base.verify_and_update_config(vllm_config)
            rename_in(vllm_config)

    MODELS_CONFIG_MAP[ARCHITECTURE] = ChoosesParsers


def note_model(model_config: "ModelConfig") -> None:
    """From now on `gemma4` means ours for this model."""
    _models.add(model_config.model)


def rename_in(vllm_config: "VllmConfig") -> None:
    """Let the engine core resolve to ours, from a configuration that was pickled on the way."""
    note_model(vllm_config.model_config)
    for config in (vllm_config.structured_outputs_config, vllm_config.reasoning_config):
        if config is not None and config.reasoning_parser == GEMMA4:
            config.reasoning_parser = OURS


def dispatch_names() -> None:
    """Wrap `ParserManager.get_parser`: for noted models it composes our parsers."""
    from vllm.parser import ParserManager

    def make(original: Any) -> Any:
        signature = inspect.signature(original)

        def get_parser(*args: Any, **kwargs: Any) -> Any:
            asked = signature.bind(*args, **kwargs).arguments
            if asked.get("model_name") in _models:
                for key in ("tool_parser_name", "reasoning_parser_name"):
                    if asked.get(key) == GEMMA4:
                        asked[key] = OURS
            parser_cls = original(**asked)
            names = {asked.get("tool_parser_name"), asked.get("reasoning_parser_name")}
            return _compose(parser_cls) if OURS in names else parser_cls

        return get_parser

    patch(ParserManager, "get_parser", make)


def _compose(parser_cls: Any) -> Any:
    """One scanner for the whole turn, unless one of the two parsers is another model's."""
    from diffusiongemma_vllm.parsers import serving
    from diffusiongemma_vllm.parsers.parser import TurnParser

    configured = {
        "reasoning_parser_cls": parser_cls.reasoning_parser_cls if parser_cls else None,
        "tool_parser_cls": parser_cls.tool_parser_cls if parser_cls else None,
    }
    own = (None, TurnParser.reasoning_parser_cls, TurnParser.tool_parser_cls)
    if parser_cls is None or any(part not in own for part in configured.values()):
        return parser_cls
    serving.install()
    level = {"tool_strict_level": parser_cls.tool_strict_level}
    return type("_Parser", (TurnParser,), configured | level)
