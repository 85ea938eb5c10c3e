"""Does the checkpoint's own chat template say what server/families/llama_guard/prompt.py says?

The official template is the reference for the prompt. Whoever serves a checkpoint whose template differs, because Meta
changed it or because the file belongs to another model, must hear of it: the model was trained on its own words.
"""

from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.domain.conversation import Conversation, ImagePart, Message, Role, TextPart
from server.domain.taxonomy import Taxonomy
from server.families.llama_guard.prompt import Prompt

_USER, _AGENT = Message("user", (TextPart("How do I bake bread?"),)), Message("assistant", (TextPart("With flour."),))
_PICTURE = Message("user", (ImagePart(""), TextPart("What is this?"), TextPart("And that?")))

CASES: dict[str, list[Message]] = {
    "a prompt": [_USER],
    "a response": [_USER, _AGENT],
    "three turns": [_USER, _AGENT, _USER],
    "an image": [_PICTURE],
    "a response to an image": [_PICTURE, _AGENT],
}


def differences(template: str, taxonomy: Taxonomy) -> list[str]:
    """The cases that `template` renders otherwise than this server, or an entry that says why it cannot be rendered."""
    try:
        # As transformers and vLLM set it up.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        compiled = environment.from_string(template)
        found = []
        for name, messages in CASES.items():
            conversation = Conversation.from_messages(messages)
            official = compiled.render(
                messages=_for_template(conversation),
                bos_token="<|begin_of_text|>",  # noqa: S106 - a token of the vocabulary, not a secret
                add_generation_prompt=True,
                raise_exception=_refuse,
            )
            if official != Prompt.render(conversation, taxonomy).text:
                found.append(name)
        return found
    except Exception as error:  # a template is a program, and fails as any other
        return [f"every case: the template cannot be rendered ({type(error).__name__})"]


def _for_template(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        {
            "role": "user" if turn.role is Role.USER else "assistant",
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in turn.parts
            ],
        }
        for turn in conversation.turns
    ]


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
