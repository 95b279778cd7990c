"""What the command says when something is wrong, and how its own server starts."""

import pytest

pytest.importorskip("openai")

from diffusiongemma_vllm.cli import server
from diffusiongemma_vllm.cli.main import main


def test_the_own_server_takes_no_key(monkeypatch):
    """Of ``demo`` and ``eval miniature``, whose clients have none."""
    started = {}
    monkeypatch.setattr(server.subprocess, "Popen", lambda *_, **options: started.update(options))
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    server.Server("model").log.unlink()
    assert "VLLM_API_KEY" not in started["env"]
    assert started["env"]["VLLM_LOGGING_LEVEL"] == "INFO"


def test_chat_without_a_server(capsys):
    assert main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    assert "chat: no server answers at http://127.0.0.1:9" in capsys.readouterr().err
