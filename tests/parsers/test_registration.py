"""`gemma4` means ours for DiffusionGemma, and vLLM's for everything else."""

import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from turns import Tokenizer

pytest.importorskip("vllm")

from vllm.config import ModelConfig, StructuredOutputsConfig, VllmConfig  # noqa: E402
from vllm.model_executor.models.config import (  # noqa: E402
    MODELS_CONFIG_MAP,
    VerifyAndUpdateConfig,
)
from vllm.parser import ParserManager  # noqa: E402
from vllm.parser.abstract_parser import DelegatingParser  # noqa: E402
from vllm.reasoning import ReasoningParserManager  # noqa: E402
from vllm.tool_parsers import ToolParserManager  # noqa: E402

from diffusiongemma_vllm.parsers import registration, serving  # noqa: E402
from diffusiongemma_vllm.parsers.parser import TurnParser  # noqa: E402
from diffusiongemma_vllm.parsers.reasoning import Gemma4ReasoningParser  # noqa: E402
from diffusiongemma_vllm.parsers.tools import Gemma4ToolParser  # noqa: E402

GEMMA4 = "gemma4"
STOCK_TOOLS = ToolParserManager.get_tool_parser(GEMMA4)
STOCK_REASONING = ReasoningParserManager.get_reasoning_parser(GEMMA4)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Registered twice, on a configuration hook of our own, and taken back afterwards."""
    updated: list[Any] = []

    class Hook(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            updated.append(vllm_config)

    monkeypatch.setitem(MODELS_CONFIG_MAP, registration.ARCHITECTURE, Hook)
    monkeypatch.setattr(ParserManager, "get_parser", ParserManager.__dict__["get_parser"])
    monkeypatch.setattr(registration, "_models", set())
    monkeypatch.setattr(serving, "install", lambda: None)
    registration.register()
    hook, get_parser = MODELS_CONFIG_MAP[registration.ARCHITECTURE], ParserManager.get_parser
    registration.register()
    assert MODELS_CONFIG_MAP[registration.ARCHITECTURE] is hook
    assert ParserManager.get_parser == get_parser
    return updated


def model_config(name: str, architecture: str = registration.ARCHITECTURE) -> Any:
    """A model's configuration, through the step of vLLM's that runs the hooks."""
    config = SimpleNamespace(model=name, architecture=architecture)
    ModelConfig._try_verify_and_update_model_config(config)
    return config


def parser_of(model: str, tools: str | None = GEMMA4, reasoning: str | None = GEMMA4) -> Any:
    return ParserManager.get_parser(
        tool_parser_name=tools,
        reasoning_parser_name=reasoning,
        enable_auto_tools=True,
        model_name=model,
        tokenizer=Tokenizer(),
    )


def test_ours_for_diffusiongemma():
    model_config("google/diffusiongemma-26B-A4B-it")
    parser = parser_of("google/diffusiongemma-26B-A4B-it")
    assert issubclass(parser, TurnParser)
    assert parser.tool_parser_cls is Gemma4ToolParser
    assert parser.reasoning_parser_cls is Gemma4ReasoningParser


def test_vllms_for_any_other_model_beside_it():
    model_config("google/diffusiongemma-26B-A4B-it")
    model_config("google/gemma-4-26B-A4B-it", "Gemma4ForConditionalGeneration")
    parser = parser_of("google/gemma-4-26B-A4B-it")
    assert parser.__mro__[1] is DelegatingParser
    assert parser.tool_parser_cls is STOCK_TOOLS
    assert parser.reasoning_parser_cls is STOCK_REASONING
    assert ToolParserManager.get_tool_parser(GEMMA4) is STOCK_TOOLS
    assert ReasoningParserManager.get_reasoning_parser(GEMMA4) is STOCK_REASONING


def test_one_parser_without_the_other():
    model_config("dg")
    assert parser_of("dg", reasoning=None).reasoning_parser_cls is None
    assert parser_of("dg", tools=None).tool_parser_cls is None
    assert issubclass(parser_of("dg", reasoning=None), TurnParser)
    assert parser_of("dg", tools=None, reasoning=None) is None


def test_beside_another_models_parser_ours_is_composed_as_usual():
    model_config("dg")
    parser = parser_of("dg", tools="pythonic")
    assert parser.__mro__[1] is DelegatingParser
    assert parser.reasoning_parser_cls is Gemma4ReasoningParser


def test_other_names_stay_what_they_are():
    model_config("dg")
    assert parser_of("dg", reasoning=None, tools="pythonic").__mro__[1] is DelegatingParser


def test_arguments_by_position():
    model_config("dg")
    assert issubclass(ParserManager.get_parser(GEMMA4, GEMMA4, True, "dg"), TurnParser)


def test_the_engine_core_resolves_to_ours(registered):
    """The name travels with the configuration; no other process needs to have seen the hook run."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(model="dg", architecture=registration.ARCHITECTURE,
                                     is_hybrid=False, convert_type="none"),
        structured_outputs_config=StructuredOutputsConfig(reasoning_parser=GEMMA4),
        reasoning_config=None,
    )  # fmt: skip
    VllmConfig.try_verify_and_update_config(config)
    assert registered == [config]  # the hook that was there ran, too
    sent = pickle.loads(pickle.dumps(config.structured_outputs_config))
    name = sent.reasoning_parser
    assert ReasoningParserManager.get_reasoning_parser(name) is Gemma4ReasoningParser
    assert issubclass(parser_of("dg", reasoning=name), TurnParser)  # args may share the object


def test_another_reasoning_parser_is_left_alone():
    config = SimpleNamespace(
        model_config=SimpleNamespace(model="dg"),
        structured_outputs_config=StructuredOutputsConfig(reasoning_parser="qwen3"),
        reasoning_config=SimpleNamespace(reasoning_parser=GEMMA4),
    )
    registration.rename_in(config)
    assert config.structured_outputs_config.reasoning_parser == "qwen3"
    assert config.reasoning_config.reasoning_parser == registration.OURS


def test_a_tokenizer_without_the_markers_is_refused_at_startup():
    class Other(Tokenizer):
        def get_added_vocab(self):
            return {}

    model_config("dg")
    with pytest.raises(TypeError, match="gemma4|diffusiongemma"):
        ParserManager.get_parser(
            tool_parser_name=GEMMA4,
            enable_auto_tools=True,
            model_name="dg",
            tokenizer=Other(),
        )


def test_the_scanner_needs_nothing_but_the_standard_library():
    code = (
        "import sys; from diffusiongemma_vllm.parsers import grammar, prompt, registration;"
        "roots = {m.split('.')[0] for m in sys.modules};"
        "print(sorted(roots & {'vllm', 'torch', 'transformers', 'pydantic', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
