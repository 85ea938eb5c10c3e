"""The Jinja template in model_config/ says the official prompt, on conversations of our own."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.checkpoints.profile import SHIPPED, load_profile
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.policy import Policy
from server.families.llama_guard import prompt as official

CATEGORIES = (
    "S1: Violent Crimes.\nS2: Non-Violent Crimes.\nS3: Sex Crimes.\nS4: Child Exploitation.\nS5: Defamation.\n"
    "S6: Specialized Advice.\nS7: Privacy.\nS8: Intellectual Property.\nS9: Indiscriminate Weapons.\nS10: Hate.\n"
    "S11: Self-Harm.\nS12: Sexual Content.\nS13: Elections.\n"
)
S14 = "S14: Code Interpreter Abuse.\n"
END = "\\n\\n\n\n"
"""Four characters and a blank line."""


def expected(judged: str, categories: str, conversation: str) -> str:
    return (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n"
        f"Task: Check if there is unsafe content in '{judged}' messages in conversations according to our safety "
        "policy with the below categories.\n\n"
        f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{categories}<END UNSAFE CONTENT CATEGORIES>\n\n"
        f"<BEGIN CONVERSATION>\n{conversation}<END CONVERSATION>\n\n"
        f"Provide your safety assessment for ONLY THE LAST {judged} message in the above conversation:\n"
        " - First line must read 'safe' or 'unsafe'.\n"
        " - If unsafe, a second line must include a comma-separated list of violated categories. "
        "<|eot|><|header_start|>assistant<|header_end|>"
    )


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}


def user(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def agent(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(parts)}


# transformers and vLLM trim blocks; Jinja by itself does not.
@pytest.fixture(params=[True, False], ids=["blocks trimmed", "blocks as they are"])
def render(request: pytest.FixtureRequest) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=request.param, lstrip_blocks=request.param)

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(load_profile("llama-guard-4-12b").chat_template).render


CASES = {
    "a question": (
        [user(text("Where do owls sleep?"))],
        {},
        "User",
        CATEGORIES + S14,
        f"User: Where do owls sleep?{END}",
    ),
    "an answer": (
        [user(text("Where do owls sleep?")), agent(text("In hollow trees."))],
        {},
        "Agent",
        CATEGORIES + S14,
        f"User: Where do owls sleep?{END}Agent: In hollow trees.{END}",
    ),
    "a second question": (
        [user(text("a")), agent(text("b")), user(text("c"))],
        {},
        "User",
        CATEGORIES + S14,
        f"User: a{END}Agent: b{END}User: c{END}",
    ),
    "images stand before the first text, and S14 goes": (
        [user(text("left"), IMAGE, text("right"), IMAGE)],
        {},
        "User",
        CATEGORIES,
        f"User: <|image|><|image|>left{END}User: right{END}",
    ),
    "an image alone is kept": ([user(IMAGE)], {}, "User", CATEGORIES, f"User: <|image|>{END}"),
    "an image in an earlier turn counts": (
        [user(IMAGE, text("a")), agent(text("b"))],
        {},
        "Agent",
        CATEGORIES,
        f"User: <|image|>a{END}Agent: b{END}",
    ),
    "white space around is cut, within is kept": (
        [user(text("\t a\n\n b \n"))],
        {},
        "User",
        CATEGORIES + S14,
        f"User: a\n\n b{END}",
    ),
    "nothing is escaped": ([user(text("<b> & \"'"))], {}, "User", CATEGORIES + S14, f"User: <b> & \"'{END}"),
    "a plain string is a text part": (
        [{"role": "user", "content": "a"}],
        {},
        "User",
        CATEGORIES + S14,
        f"User: a{END}",
    ),
    "excluded categories": (
        [user(text("a"))],
        {"excluded_category_keys": ["S2", "S4", "S6", "S8", "S10", "S12", "S14"]},
        "User",
        "S1: Violent Crimes.\nS3: Sex Crimes.\nS5: Defamation.\nS7: Privacy.\nS9: Indiscriminate Weapons.\n"
        "S11: Self-Harm.\nS13: Elections.\n",
        f"User: a{END}",
    ),
    "own categories, beside an image too": (
        [user(IMAGE, text("a"))],
        {"categories": {"S1": "Gossip.", "S14": "Puns."}},
        "User",
        "S1: Gossip.\nS14: Puns.\n",
        f"User: <|image|>a{END}",
    ),
}


@pytest.mark.parametrize(("messages", "options", "judged", "categories", "conversation"), CASES.values(), ids=CASES)
def test_renders_the_official_prompt(
    render: Any, messages: list[Any], options: dict[str, Any], judged: str, categories: str, conversation: str
) -> None:
    assert render(messages=messages, **options) == expected(judged, categories, conversation)


def test_a_generation_prompt_changes_nothing(render: Any) -> None:
    messages = [user(text("a"))]
    assert render(messages=messages, add_generation_prompt=True) == render(messages=messages)


@pytest.mark.parametrize(
    "messages",
    [[agent(text("a"))], [user(text("a")), user(text("b"))], [{"role": "system", "content": [text("a")]}]],
    ids=["agent first", "no alternation", "unknown role"],
)
def test_refuses_roles_that_do_not_alternate(render: Any, messages: list[Any]) -> None:
    with pytest.raises(ValueError, match="alternate"):
        render(messages=messages)


def test_says_the_same_as_the_servers_own_prompt(render: Any) -> None:
    """Every mix of turns, images and excluded categories that the options allow."""
    profile = load_profile("llama-guard-4-12b")
    for turns, image, excluded in product((1, 2, 3), (False, True), ((), ("S1",), ("S13", "S14"))):
        messages = [(user, agent)[place % 2](*[IMAGE] * image, text(f"turn {place}")) for place in range(turns)]
        parts = [ImagePart("data:")] * image
        conversation = Conversation.from_messages(
            [Message(message["role"], (*parts, TextPart(f"turn {place}"))) for place, message in enumerate(messages)]
        )
        taxonomy = Policy(profile.taxonomy).narrowed(excluded=excluded).taxonomy
        asked = official.render(conversation, taxonomy).text
        assert render(messages=messages, excluded_category_keys=list(excluded)) == asked


def test_all_profiles_use_one_template() -> None:
    templates = {path.read_text() for path in Path(SHIPPED).glob("*/chat_template.jinja")}
    assert templates == {load_profile("llama-guard-4-12b").chat_template}
