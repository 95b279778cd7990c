"""Made-up data sets in the real ones' files and columns, and a server that says what it is told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Stub:
    """An OpenAI server.

    replies: (words of the question, what to say to it), first match; a dict is the whole body.
    key: that it wants.  page: status and body of its list of models, where it has none.
    """

    def __init__(self):
        self.replies, self.asked, self.broken_after = [], [], None
        self.key = self.page = None
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                if stub.page is not None:
                    return self._say(*stub.page)
                if not self._welcome():
                    return None
                self._say(200, {"object": "list", "data": [
                    {"id": "stub", "object": "model", "root": "org/stub-checkpoint"}
                ]})

            def do_POST(self):
                if not self._welcome():
                    return None
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.asked.append(body)
                    broken = stub.broken_after is not None and len(stub.asked) > stub.broken_after
                if broken:
                    return self._say(400, {"error": {"message": "the stub is out of order"}})
                text = body["messages"][-1]["content"]
                said = next((said for words, said in stub.replies if words in text), None)
                assert said is not None, text
                if isinstance(said, dict):
                    return self._say(200, said)
                self._say(200, {
                    "id": "1", "object": "chat.completion", "created": 1, "model": "stub",
                    "choices": [{
                        "index": 0, "finish_reason": "length" if said == "" else "stop",
                        "message": {"role": "assistant", "content": said or None,
                                    "reasoning": "Answer: B? 17? \\boxed{17}"},
                    }],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
                })

            def _welcome(self):
                if stub.key and self.headers["Authorization"] != f"Bearer {stub.key}":
                    self._say(401, {"error": "Unauthorized"})
                    return False
                return True

            def _say(self, status, body):
                page = isinstance(body, str)
                sent = body.encode() if page else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if page else "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stub():
    made = Stub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """No hub, and caches that belong to the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache"))
    )


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"
