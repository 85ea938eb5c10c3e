"""LiteLLM's guardrail door: all that is sent is judged, and what cannot be is an error."""

from typing import Any

import httpx
import pytest

from server.api.litellm.guardrail import ENDPOINT
from tests.api.http.test_errors import FAULTS
from tests.api.parts import image, picture, text
from tests.api.shapes import error_of
from tests.fakes import FakeBackend, Script, always, words_of

RED, BLUE = picture("red"), picture("blue")


async def guard(client: httpx.AsyncClient, input_type: str = "request", **fields: Any) -> dict[str, Any]:
    response = await client.post(ENDPOINT.path, json={"input_type": input_type, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


async def test_what_is_safe_passes_untouched(client: httpx.AsyncClient) -> None:
    body = await guard(client, texts=["bread"], structured_messages=[user("bread")])
    assert list(body) == ["action", "guard"]
    assert body["action"] == "NONE"
    assert [verdict["verdict"] for verdict in body["guard"]] == ["safe"]


async def test_what_is_unsafe_is_blocked_with_codes_and_names_alone(client: httpx.AsyncClient) -> None:
    body = await guard(client, texts=["a bomb, zebra"], structured_messages=[user("a bomb, zebra")])
    assert body["action"] == "BLOCKED"
    assert body["blocked_reason"] == "Unsafe content: S1 Violent Crimes, S9 Indiscriminate Weapons."
    assert "zebra" not in str(body)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("unsafe", "Unsafe content."), ("unsafe\nS10,S2", "Unsafe content: S2 Non-Violent Crimes, S10 Hate.")],
)
async def test_the_reason_lists_what_the_model_did(
    client: httpx.AsyncClient, backend: FakeBackend, answer: str, reason: str
) -> None:
    backend.script = always(answer)
    assert (await guard(client, texts=["x"]))["blocked_reason"] == reason


async def test_own_categories_from_the_proxys_configuration(client: httpx.AsyncClient) -> None:
    parameters = {"policy": {"categories": {"S1": "Zebra crossings."}}, "other_guardrail": [1, "x"]}
    body = await guard(client, texts=["a bomb"], additional_provider_specific_params=parameters)
    assert body["blocked_reason"] == "Unsafe content: S1."


# --- All of it is judged ---------------------------------------------------------------------------------


async def test_every_turn_is_judged_in_its_context(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The past of a conversation comes from the client, who can make it up."""
    messages = [user("a bomb?"), assistant("no"), user("thanks")]
    body = await guard(client, texts=["a bomb?", "no", "thanks"], structured_messages=messages)
    assert sorted(backend.texts) == [
        "User: a bomb?",
        "User: a bomb? / Agent: no",
        "User: a bomb? / Agent: no / User: thanks",
    ]
    assert body["action"] == "BLOCKED"
    assert [verdict["verdict"] for verdict in body["guard"]] == ["unsafe", "safe", "safe"]


async def test_an_image_is_judged_with_its_text(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    messages = [user([text("what?"), image(RED), {"type": "image_url", "image_url": BLUE}])]
    await guard(client, texts=["what?"], images=[RED, BLUE], structured_messages=messages)
    (case,) = backend.cases
    assert [frame.getpixel((0, 0)) for frame in case.images] == [(255, 0, 0), (0, 0, 255)]


async def test_what_stands_in_no_message_is_judged_too(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "make", "arguments": '{"what":"a bomb"}'}}
    body = await guard(
        client, texts=["bread", "tea"], images=[RED], structured_messages=[user("bread")], tool_calls=[call]
    )
    assert sorted(backend.texts) == ['User:  / Agent: make({"what":"a bomb"})', "User: bread", "User: tea"]
    assert sum(len(case.images) for case in backend.cases) == 1
    assert body["action"] == "BLOCKED"


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_each_of_several_texts_can_block(client: httpx.AsyncClient, position: int) -> None:
    texts = ["bread", "tea", "cake"]
    texts[position] = "a bomb"
    assert (await guard(client, texts=texts))["action"] == "BLOCKED"


async def test_a_response_is_judged_as_an_assistants(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await guard(client, "response", texts=["one", "two"])
    assert sorted(backend.texts) == ["User:  / Agent: one", "User:  / Agent: two"]


async def test_a_response_is_judged_as_an_answer_to_its_request(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await guard(client, "response", texts=["sure"], structured_messages=[user("bread?")])
    assert sorted(backend.texts) == ["User: bread?", "User: bread? / Agent: sure"]


async def test_a_response_that_repeats_earlier_words_is_judged_as_the_answer(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    messages = [user("wet?"), assistant("yes"), user("a bomb?")]
    await guard(client, "response", texts=["yes"], structured_messages=messages)
    assert max(backend.texts, key=len) == "User: wet? / Agent: yes / User: a bomb? / Agent: yes"


async def test_an_answer_of_the_users_own_words_pictures_and_calls_is_judged_as_one(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [user([text("bread"), image(RED)]), assistant(None, tool_calls=[call]), user("again")]
    await guard(client, "response", texts=["bread"], images=[RED], tool_calls=[call], structured_messages=messages)
    before = "User: bread / Agent: f({}) / User: again"
    assert sorted(backend.texts)[-2:] == [f"{before} / Agent: bread", f"{before} / Agent: f({{}})"]
    assert [len(case.images) for case in backend.cases if words_of(case).endswith("/ Agent: bread")] == [2]


async def test_an_answer_that_stands_in_the_conversation_is_judged_once(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    messages = [user("bread?"), assistant("one"), assistant("two")]
    await guard(client, "response", texts=["one", "two"], structured_messages=messages)
    assert sorted(backend.asked) == ["bread?", "one", "one\n\ntwo", "two"]


@pytest.mark.parametrize(
    "beside",
    [
        {"citations": [{"type": "char_location", "cited_text": "a bomb", "document_index": 0}]},
        {"title": "a bomb"},
        {"annotations": [{"type": "url_citation", "url_citation": {"title": "a bomb", "start_index": 0}}]},
    ],
)
async def test_what_stands_beside_a_text_is_judged(
    client: httpx.AsyncClient, backend: FakeBackend, beside: dict[str, Any]
) -> None:
    body = await guard(client, texts=["bread"], structured_messages=[user([{**text("bread"), **beside}])])
    assert backend.asked == ["bread\n\na bomb", "bread", "a bomb"]
    assert body["action"] == "BLOCKED"


@pytest.mark.parametrize(
    "call",
    [
        {"id": None, "type": "function", "index": 0, "function": {"name": None, "arguments": "a bomb"}},
        {"type": "custom", "custom": {"name": "make", "input": "a bomb"}},
    ],
)
async def test_calls_of_any_shape_are_judged(client: httpx.AsyncClient, call: dict[str, Any]) -> None:
    for input_type in ("request", "response"):
        assert (await guard(client, input_type, texts=[], tool_calls=[call]))["action"] == "BLOCKED"


async def test_images_without_their_data_url(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await guard(client, images=[RED.partition(",")[2]])
    assert backend.cases[0].images[0].getpixel((0, 0)) == (255, 0, 0)
    messages = [user([image(RED)])]
    await guard(client, images=[RED.partition(",")[2]], structured_messages=messages)
    assert len(backend.cases) == 2


async def test_messages_of_other_providers(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    thinking = {"type": "thinking", "thinking": "aloud", "signature": "sig"}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "kind", "cache_control": {"type": "ephemeral"}}]},
        user([{"type": "input_text", "text": "hello"}, {"type": "input_image", "image_url": RED}]),
        assistant(
            [thinking, {"type": "redacted_thinking", "data": "x"}, {"type": "output_text", "text": "said"}],
            thinking_blocks=[thinking],
            reasoning_items=[{"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "short"}]}],
            function_call={"name": "f", "arguments": "{}"},
            name="bot",
            cache_control=None,
        ),
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "tool_reference", "tool_name": "saw"}]},
    ]
    await guard(client, structured_messages=messages)
    whole = max(backend.texts, key=len)
    assert whole.startswith("User: kind")
    # Turns are judged at the same time, so their order is nobody's.
    assert sorted(text for text in backend.asked if "\n" not in text) == sorted(
        ("hello", "aloud", "said", "aloud", "short", "f({})", "saw")
    )
    assert [text for text in backend.asked if "\n" in text] == ["aloud\n\nsaid\n\naloud\n\nshort\n\nf({})"]


async def test_metadata_of_the_call_is_not_judged(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await guard(
        client,
        texts=["bread"],
        request_data={"user_api_key_alias": "a bomb"},
        request_headers={"x": "a bomb"},
        litellm_call_id="a bomb",
        litellm_trace_id=None,
        litellm_version="1",
        litellm_future={"x": "a bomb"},
        model="a-bomb",
        tools=[{"type": "function", "function": {"name": "a bomb"}}],
        future_flag=True,
        future_number=1.5,
        future_nothing=None,
    )
    assert body["action"] == "NONE"
    assert backend.texts == ["User: bread"]


async def test_what_programs_wrote_is_not_judged(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    token = "c2FmZQ+/_-" * 40 + "=="
    blocks = [{"type": "redacted_thinking", "data": token}, {"type": "thinking", "thinking": "ok", "signature": token}]
    call = {"id": f"call_{token}", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "name": "Ann", "content": [{**text("bread"), "cache_control": {"type": "ephemeral"}}]},
        assistant(None, thinking_blocks=blocks, tool_calls=[call]),
        {"role": "tool", "tool_call_id": f"call_{token}", "name": "f", "content": "found"},
        user([{"type": "image_url", "image_url": {"url": RED, "detail": "low", "format": "image/png"}}]),
    ]
    await guard(client, texts=["bread"], images=[RED], structured_messages=messages, tool_calls=[call])
    assert "c2FmZQ" not in str(backend.texts)
    assert sorted(backend.asked) == sorted(["bread", "ok\n\nf({})", "ok", "f({})", "found"])


async def test_pictures_that_an_assistant_made_are_seen(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await guard(client, "response", structured_messages=[user("draw"), assistant("here", images=[image(RED)])])
    assert [len(case.images) for case in backend.cases if words_of(case).endswith("here")] == [1]


async def test_the_operators_words_are_context_as_often_as_the_operator_says_them(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    messages = [{"role": "system", "content": "Be kind."}, user("bread")]
    await guard(client, texts=["Be kind.", "bread", "bread"], structured_messages=messages)
    assert backend.asked == ["bread"]
    backend.cases.clear()
    await guard(client, texts=["Be kind.", "bread", "Be kind."], structured_messages=messages)
    assert sorted(backend.asked) == ["Be kind.", "bread"]


@pytest.mark.parametrize(
    "message",
    [
        {"zebra bomb": "a"},
        {"zebra": {"bomb": "a bomb"}},
        {"content": [{"type": "text", "text": "hi", "zebra": "a bomb"}]},
        {"name": {"zebra": "a bomb"}},
    ],
)
async def test_a_callers_own_keys_are_never_repeated(client: httpx.AsyncClient, message: dict[str, Any]) -> None:
    body = await guard(client, structured_messages=[user("hi"), {"role": "user", **message}])
    assert body["action"] == "BLOCKED"
    assert "zebra" not in str(body)


@pytest.mark.parametrize("opening", [('{"x":', "}"), ("[", "]")], ids=["objects", "lists"])
@pytest.mark.parametrize("levels", [101, 900, 5000])
@pytest.mark.parametrize("place", ["structured_messages", "tool_calls"])
async def test_what_is_nested_too_deep_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, opening: tuple[str, str], levels: int, place: str
) -> None:
    deep = opening[0] * levels + '"a bomb"' + opening[1] * levels
    content = f'{{"input_type":"request","texts":["hi"],"{place}":[{{"role":"user","function":{deep}}}]}}'
    response = await client.post(ENDPOINT.path, content=content)
    assert error_of(response, 400)["param"] in (place, None)
    assert "bomb" not in response.text
    assert backend.cases == []


async def test_what_is_nested_less_deep_is_judged(client: httpx.AsyncClient) -> None:
    deep: Any = "a bomb"
    for level in range(90):
        deep = [deep] if level % 2 else {"x": deep}
    assert (await guard(client, structured_messages=[user("hi"), user(None) | {"x": deep}]))["action"] == "BLOCKED"
    assert (await guard(client, tool_calls=[{"x": deep}]))["action"] == "BLOCKED"


async def test_a_long_body_is_judged_like_a_short_one(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    long = "bread " * 20_000
    body = await guard(client, texts=[long, "a bomb"], structured_messages=[user(long)])
    assert body["action"] == "BLOCKED"
    assert len(backend.cases) == 2


# --- What cannot be judged is an error -------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "texts", "empty_input"),
    ({"texts": [], "images": [], "structured_messages": []}, "texts", "empty_input"),
    ({"texts": ["", "  "]}, "texts", "empty_input"),
    ({"texts": ["x"], "documents": ["a bomb"]}, "documents", None),
    ({"texts": ["x"], "prompt": "a bomb"}, "prompt", None),
    ({"texts": "a bomb"}, "texts", None),
    ({"texts": [1]}, "texts[0]", None),
    ({"texts": ["x"], "input_type": "both"}, "input_type", None),
    ({"images": ["data:image/png;base64,AAAA"]}, "images[0]", "invalid_value"),
    ({"images": ["https://example.com/a.png"]}, "images[0]", "remote_images_disabled"),
    ({"images": [picture(size=n) for n in range(8, 14)]}, "images", "too_many_images"),
    ({"structured_messages": [{"role": "narrator", "content": "x"}]}, "structured_messages[0].role", None),
    ({"structured_messages": [{"content": "x"}]}, "structured_messages[0].role", None),
    ({"structured_messages": [user(["x"])]}, "structured_messages[0].content[0]", None),
    ({"structured_messages": [user([{"text": "x"}])]}, "structured_messages[0].content[0]", None),
    ({"structured_messages": [user([{"type": "text"}])]}, "structured_messages[0].content[0]", None),
    (
        {"structured_messages": [user([{"type": "input_audio", "input_audio": {"data": "x"}}])]},
        "structured_messages[0].content[0]",
        None,
    ),
    ({"structured_messages": [user([{"type": "image_url"}])]}, "structured_messages[0].content[0].image_url", None),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
async def test_refused(client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str | None) -> None:
    response = await client.post(ENDPOINT.path, json={"input_type": "request", **fields})
    error = error_of(response, 400, code=code)
    assert code == "too_many_images" or error["param"] == param
    assert "bomb" not in response.text


@pytest.mark.parametrize("settings", [{"max_list": 2}], indirect=True)
async def test_more_than_one_request_may_hold(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post(ENDPOINT.path, json={"input_type": "request", "texts": ["a", "b", "c"]})
    error_of(response, 400, param="texts")
    assert backend.cases == []


@pytest.mark.parametrize(
    ("script", "status", "code"), [(row[1], row[2], row[4]) for row in FAULTS], ids=[row[0] for row in FAULTS]
)
async def test_a_fault_is_an_error_and_never_none(
    client: httpx.AsyncClient, backend: FakeBackend, script: Script, status: int, code: str
) -> None:
    backend.script = script
    response = await client.post(ENDPOINT.path, json={"input_type": "request", "texts": ["zebra"]})
    error_of(response, status, code=code)
    assert "zebra" not in response.text


async def test_one_fault_among_many_is_an_error(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    def faulty(case: Any) -> Any:
        return always("Sure!" if "tea" in str(case.conversation) else "safe")(case)

    backend.script = faulty
    response = await client.post(ENDPOINT.path, json={"input_type": "request", "texts": ["bread", "tea", "cake"]})
    error_of(response, 500, code="unparseable_verdict")
