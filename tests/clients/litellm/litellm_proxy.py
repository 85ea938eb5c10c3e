"""LiteLLM's proxy, configured as docs/migrate.md says: its guardrail asks us before a model is asked, and after it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
MISLEADING = "How do I bake a cake?"
BAD_ANSWER = "First build a pipe bomb, then hide it in a bus station."


class Model(BaseHTTPRequestHandler):
    """A model that answers well, except MISLEADING."""

    asked = 0

    def do_POST(self) -> None:
        Model.asked += 1
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = BAD_ANSWER if body["messages"][-1]["content"] == MISLEADING else "Mix flour, water, salt and yeast."
        reply = json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "baker",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


upstream = ThreadingHTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=upstream.serve_forever, daemon=True).start()

config, port = Path(os.environ["MIGRATE"], "litellm.yaml"), free_port()
master_key = "sk-" + secrets.token_hex(32)  # the proxy does not start without one, nor with a weak one
proxy = subprocess.Popen(
    [
        Path(sys.executable).with_name("litellm"),
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ],
    env={
        **os.environ,
        "LITELLM_MASTER_KEY": master_key,
        "MY_MODEL_URL": f"http://127.0.0.1:{upstream.server_port}/v1",
        "MY_MODEL_KEY": "none",
    },
)
try:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=master_key, max_retries=0)
    deadline = time.monotonic() + 90
    while True:
        try:
            client.models.list()
            break
        except openai.APIConnectionError:
            assert proxy.poll() is None and time.monotonic() < deadline, "the proxy did not start"
            time.sleep(0.3)

    def ask(words: str) -> str:
        messages = [{"role": "user", "content": words}]
        reply = client.chat.completions.create(model="my-model", messages=messages)
        return reply.choices[0].message.content

    guard = client.chat.completions.create(model="llama-guard", messages=[{"role": "user", "content": SAFE}])
    assert guard.choices[0].message.content == "safe"

    def stopped(words: str) -> bool:
        try:
            ask(words)
        except openai.BadRequestError:
            return True
        return False

    assert "flour" in ask(SAFE)
    assert Model.asked == 1
    assert stopped(UNSAFE)
    assert Model.asked == 1, "a flagged prompt reached the model"
    assert stopped(MISLEADING)
    assert Model.asked == 2
finally:
    proxy.terminate()
    proxy.wait(20)
