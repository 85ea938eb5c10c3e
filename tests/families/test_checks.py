"""A checkpoint whose own chat template says something else is found out before it judges."""

import pytest

from server.checkpoints.profile import load_profile
from server.domain.taxonomy import HazardCategory, Taxonomy
from server.families.checks import CASES, differences
from tests.readings import FAMILY

PROFILES = ("llama-guard-4-12b", "pocket")
TEMPLATE = load_profile("llama-guard-4-12b").chat_template
TAXONOMY = load_profile("llama-guard-4-12b").taxonomy

EVERYWHERE = list(CASES)
WITH_IMAGE = ["an image", "a response to an image"]
WITH_RESPONSE = ["a response", "a response to an image"]


@pytest.mark.parametrize("name", PROFILES)
def test_shipped_template_is_equal(name):
    profile = load_profile(name)
    assert differences(FAMILY, profile.chat_template, profile.taxonomy) == []


EDITS = {
    "another word": ("Check if there is", "Check whether there is", EVERYWHERE),
    "another category": ("'Hate.'", "'Hate Speech.'", EVERYWHERE),
    "a category less": ("        'S13': 'Elections.',\n", "", EVERYWHERE),
    "a newline after the header": ("assistant<|header_end|>'", "assistant<|header_end|>\\n\\n'", EVERYWHERE),
    "another end of messages": ("'\\\\n\\\\n\\n\\n'", "'\\n\\n'", EVERYWHERE),
    "another space at the end": ("categories. '", "categories.'", EVERYWHERE),
    "another speaker": (
        "else 'Agent: '",
        "else 'Assistant: '",
        [*WITH_RESPONSE[:1], "three turns", *WITH_RESPONSE[1:]],
    ),
    "another turn judged": ("if messages | length is odd else 'Agent'", "if true else 'Agent'", WITH_RESPONSE),
    "S14 asked about images": ("['S14'] if seen.image", "[] if seen.image", WITH_IMAGE),
    "another image token": ("'<|image|>'", "'<|patch|>'", WITH_IMAGE),
    "images before every text": ("if loop.first else ''", "if true else ''", WITH_IMAGE),
    "a space after images": ("'<|image|>' *", "'<|image|> ' *", WITH_IMAGE),
}


@pytest.mark.parametrize(("old", "new", "expected"), EDITS.values(), ids=EDITS)
def test_edited_template_is_reported_with_its_cases(old, new, expected):
    assert TEMPLATE.count(old) == 1, "the shipped template has changed: this edit must be written anew"
    assert sorted(differences(FAMILY, TEMPLATE.replace(old, new), TAXONOMY)) == sorted(expected)


def test_template_of_another_model_is_reported():
    chat = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    assert differences(FAMILY, chat, TAXONOMY) == EVERYWHERE
    assert differences(FAMILY, "", TAXONOMY) == EVERYWHERE


def test_taxonomy_of_another_model_is_reported():
    assert differences(FAMILY, TEMPLATE, Taxonomy((HazardCategory("S1", "Violent Crimes."),))) == EVERYWHERE


BROKEN = {
    "a syntax error": ("{% if %}", "TemplateSyntaxError"),
    "an unclosed block": (TEMPLATE + "{% if true %}", "TemplateSyntaxError"),
    "an unknown filter": ("{{ messages | frobnicate }}", "TemplateAssertionError"),
    "an unknown name": ("{{ nothing.of_it }}", "UndefinedError"),
    "a refusal of the conversation": ("{{ raise_exception('no') }}", "TemplateError"),
    "a wrong type": ("{{ messages + 1 }}", "TypeError"),
    "a division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "endless recursion": ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
    "another template": ("{% include 'other' %}", "TypeError"),
}


@pytest.mark.parametrize(("template", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_template_is_reported_and_does_not_break_the_start(template, reason):
    assert differences(FAMILY, template, TAXONOMY) == [f"every case: the template cannot be rendered ({reason})"]


ESCAPES = {
    "classes": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "globals of a function": ("{{ raise_exception.__globals__['sys'] }}", "SecurityError"),
    "formatting": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "SecurityError"),
    "changing the messages": ("{{ messages.clear() }}", "SecurityError"),
    "a huge range": ("{{ range(1000000000) | list }}", "OverflowError"),
}


@pytest.mark.parametrize(("template", "reason"), ESCAPES.values(), ids=ESCAPES)
def test_template_runs_in_a_sandbox(template, reason):
    """A checkpoint is data from a hub: its template is a program by somebody else."""
    assert differences(FAMILY, template, TAXONOMY) == [f"every case: the template cannot be rendered ({reason})"]


def test_loop_controls_are_known():
    """transformers and vLLM know `break` and `continue` in templates, so a checkpoint may use them."""
    assert differences(FAMILY, TEMPLATE + "{% for one in messages %}{% break %}{% endfor %}", TAXONOMY) == []
