"""The floor on an engine of our own, and where it takes part."""

import json

import httpx

from benchmarks.contenders import Contender
from benchmarks.floor_server import ANSWER, NUMBERS, PROMPTS, Floor
from benchmarks.load_generator import verdict
from benchmarks.traffic import LOADS, Load


class Engine:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, ...]] = []

    async def generate(self, prompt, sampling, request_id):
        self.prompts.append(tuple(prompt["prompt_token_ids"]))
        assert sampling.max_tokens == 1
        yield None


async def test_each_request_is_one_pass_over_a_prompt_that_was_never_seen():
    engine = Engine()
    rests = [[NUMBERS + number] for number in range(PROMPTS)]
    transport = httpx.ASGITransport(Floor(engine, [1, 2, 3], rests))
    async with httpx.AsyncClient(transport=transport, base_url="http://floor") as client:
        assert (await client.get("/")).status_code == 200
        assert engine.prompts == []
        asked = NUMBERS + PROMPTS
        for _ in range(asked):
            answer = await client.post("/v1/moderations", content=b"anything")
        assert "python_info" in (await client.get("/metrics")).text
    assert answer.content == ANSWER
    assert verdict("moderations", json.loads(answer.content)) is False
    assert len(set(engine.prompts)) == len(engine.prompts) == asked
    assert all(prompt[:3] == (1, 2, 3) and len(prompt) == 6 for prompt in engine.prompts)


def test_it_takes_part_in_the_load_that_its_prompts_are_of_and_no_other():
    floor = Contender("floor", "", "moderations", "", (), None, only_load="short")
    nemo = Contender("nemo", "", "checks", "", (), None, takes_images=False)
    assert [load for load in LOADS if floor.takes(Load(load, LOADS[load]))] == ["short"]
    assert [load for load in LOADS if not nemo.takes(Load(load, LOADS[load]))] == [
        "image1",
        "image3",
        "image5",
        "mixed",
    ]
