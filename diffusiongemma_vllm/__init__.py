"""DiffusionGemma for vLLM.  Importing this package imports neither torch nor vLLM."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``infill`` and ``Gap``, ``on_draft`` and ``Draft``, imported when they are first used."""
    if name in ("infill", "Gap"):
        from diffusiongemma_vllm import infilling

        return getattr(infilling, name)
    if name in ("on_draft", "Draft"):
        from diffusiongemma_vllm.runner import listening

        return getattr(listening, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Entry point of ``vllm.general_plugins``: runs once in every process that vLLM starts."""
    from diffusiongemma_vllm import plugin

    plugin.register()


def prepare_platform() -> None:
    """Entry point of ``vllm.platform_plugins``: never a platform of its own (returns None)."""
    from diffusiongemma_vllm import cpu

    cpu.prepare()
