"""The bare engine on a client of our own, and where it takes part."""

import json

import httpx

from benchmarks.bare_engine import ANSWER, NUMBERS, PROMPTS, BareEngine
from benchmarks.contenders import Contender
from benchmarks.load_generator import verdict
from benchmarks.traffic import LOADS, Load
from server.backends.vllm.client import EngineClient


class Client(EngineClient):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, ...]] = []

    def form(self, sampling):
        return sampling

    async def ask(self, form, prompt, *, priority=0, cache_salt=None):
        self.prompts.append(tuple(prompt))
        assert form.max_tokens == 1


async def test_each_request_is_one_pass_over_a_prompt_that_was_never_seen():
    asked_of = Client()
    rests = [[NUMBERS + number] for number in range(PROMPTS)]
    transport = httpx.ASGITransport(BareEngine(asked_of, [1, 2, 3], rests))
    async with httpx.AsyncClient(transport=transport, base_url="http://bare-engine") as client:
        assert (await client.get("/")).status_code == 200
        assert asked_of.prompts == []
        asked = NUMBERS + PROMPTS
        for _ in range(asked):
            answer = await client.post("/v1/moderations", content=b"anything")
        assert "python_info" in (await client.get("/metrics")).text
    assert answer.content == ANSWER
    assert verdict("moderations", json.loads(answer.content)) is False
    assert len(set(asked_of.prompts)) == len(asked_of.prompts) == asked
    assert all(prompt[:3] == (1, 2, 3) and len(prompt) == 6 for prompt in asked_of.prompts)


def test_it_takes_part_in_the_load_that_its_prompts_are_of_and_no_other():
    bare_engine = Contender("bare-engine", "", "moderations", "", (), None, only_load="short")
    nemo = Contender("nemo", "", "checks", "", (), None, takes_images=False)
    assert [load for load in LOADS if bare_engine.takes(Load(load, LOADS[load]))] == ["short"]
    assert [load for load in LOADS if not nemo.takes(Load(load, LOADS[load]))] == [
        "image1",
        "image3",
        "image5",
        "mixed",
    ]
