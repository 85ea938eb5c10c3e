"""What is checked of a family before a checkpoint is loaded: its prompt beside the checkpoint's tokenizer and template.

A checkpoint's own chat template is the reference for the prompt. Whoever serves a checkpoint whose template differs,
because its makers changed it or because the file belongs to another model, must hear of it: the model was trained on
its own words.
"""

from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.domain.conversation import Conversation, ImagePart, Message, Role, TextPart, Turn
from server.domain.taxonomy import Taxonomy
from server.families.base import Family
from server.families.tokenizer import PromptTokenizer

_USER, _AGENT = Message("user", (TextPart("How do I bake bread?"),)), Message("assistant", (TextPart("With flour."),))
_PICTURE = Message("user", (ImagePart(""), TextPart("What is this?"), TextPart("And that?")))

CASES: dict[str, list[Message]] = {
    "a prompt": [_USER],
    "a response": [_USER, _AGENT],
    "three turns": [_USER, _AGENT, _USER],
    "an image": [_PICTURE],
    "a response to an image": [_PICTURE, _AGENT],
}


def differences(family: Family, template: str, taxonomy: Taxonomy, *, images: bool = True) -> list[str]:
    """The cases that `template` renders otherwise than `family`, or an entry that says why it cannot be rendered.

    Cases with images are left out where the model takes none.
    """
    try:
        # As transformers and vLLM set it up.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        compiled = environment.from_string(template)
        found = []
        for name, messages in CASES.items():
            conversation = Conversation.from_messages(messages)
            if conversation.images and not images:
                continue
            official = compiled.render(
                messages=family.for_template(conversation),
                bos_token=family.bos_token,
                add_generation_prompt=True,
                raise_exception=_refuse,
            )
            if official != family.prompt(conversation, taxonomy).text:
                found.append(name)
        return found
    except Exception as error:  # a template is a program, and fails as any other
        return [f"every case: the template cannot be rendered ({type(error).__name__})"]


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


_EDGES = (
    "a",
    "7",
    "!",
    "\\",
    "/",
    "'s",
    "é",
    "\u0301",
    "ß",
    "中",
    "ि",
    "😀",
    "\u200d",
    "_",
    ".\n\nUser: x",
    "a\n /",
    "<",
    ">\n",
)
"""Ways in which a message may begin and end."""


def stands_apart(family: Family, tokenizer: PromptTokenizer, taxonomy: Taxonomy) -> bool:
    """Whether encoding what never changes by itself gives the ids of the whole, whatever stands beside it.

    For Llama 4's tokenizer it follows from the expression that cuts text into words. Others have to show it.
    """
    conversations = [
        Conversation((Turn(Role.USER, (TextPart(begin + end),)), *answer))
        for begin in _EDGES
        for end in ("", *_EDGES)
        for answer in ((), (Turn(Role.AGENT, (TextPart(end + begin),)),))
    ]
    prompts = [family.prompt(conversation, taxonomy) for conversation in conversations]
    return all(tokenizer.encode(prompt.pieces) == tokenizer.encode_whole(prompt.pieces) for prompt in prompts)
