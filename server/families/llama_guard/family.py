"""Llama Guard: its words and its prompt, as far as they need no engine."""

import re
from collections.abc import Mapping, Sequence

from server.domain.conversation import Conversation, ImagePart
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Levels, Said, Verdict
from server.families.base import Family, Prompt, Wording
from server.families.llama_guard import answer, pictures, prompt, wording
from server.families.llama_guard.finished_prompt import FinishedPrompt
from server.families.llama_guard.steps import LlamaGuardAsker
from server.families.tokenizer import PromptTokenizer

_CONTROL_TOKEN = re.compile(r"<\|[^<>|\s]+\|>")
"""How every added token of Llama 4 is spelt."""


class LlamaGuard(Family):
    """Llama Guard 4: fourteen codes, two words, one forward pass a verdict."""

    tokens = {"blank_line": "\n\n", "safe": "safe", "unsafe": "unsafe"}  # noqa: RUF012 - declared in Family
    control_tokens = prompt.CONTROL_TOKENS
    bos_token = prompt.BEGIN
    own_codes = answer.CODES
    pictures = pictures.SIZES

    def prompt(self, conversation: Conversation, taxonomy: Taxonomy) -> Prompt:
        return prompt.render(conversation, taxonomy)

    def read(self, text: str, levels: Levels | None = None) -> Said:
        return answer.read(text, levels)

    def asker(self, tokenizer: PromptTokenizer, ends: Sequence[int]) -> LlamaGuardAsker:
        return LlamaGuardAsker(tokenizer, ends)

    def spells_control(self, text: str) -> bool:
        return _CONTROL_TOKEN.search(text) is not None

    def write(
        self,
        verdict: Verdict,
        *,
        codes: Mapping[str, str] | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Wording:
        return wording.write(verdict, codes=codes, max_tokens=max_tokens, stop=stop)

    def splits_an_answer(self, stop: str) -> bool:
        return wording.splits_an_answer(stop)

    def finished_prompt(self, text: str, images: Sequence[ImagePart] = ()) -> FinishedPrompt | None:
        return FinishedPrompt.read(text, images)
