"""A family that no model has: three levels, two asks a verdict, categories by name, and turns in another form.

It is what docs/models.md calls a family, as short as one can be, and as unlike Llama Guard.
"""

import re
from collections.abc import Sequence

from server.domain.conversation import Conversation, Role
from server.domain.errors import InvalidRequest, UnparseableVerdict
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Levels, Reading, Said, Severity, decide
from server.families.base import Answer, Ask, Asker, Family, Prompt, Steps
from server.families.tokenizer import Literal, PromptTokenizer, Scaffold

LIGHTS = {"Green": Severity.SAFE, "Amber": Severity.CONTROVERSIAL, "Red": Severity.UNSAFE}
ANSWER = re.compile(r"(Green|Amber|Red)(?:: (.+))?")


class TrafficLight(Family):
    def prompt(self, conversation: Conversation, taxonomy: Taxonomy) -> Prompt:
        if conversation.images:
            raise InvalidRequest("This model judges text only.", param="messages")
        names = ", ".join(taxonomy.codes)
        turns = [
            piece
            for turn in conversation.turns
            for piece in (
                Scaffold("[user says] " if turn.role is Role.USER else "[model says] "),
                Literal(" ".join(turn.texts)),
            )
        ]
        return Prompt((Scaffold(f"Which light? {names}\n"), *turns, Scaffold("\nLight:")), taxonomy)

    def read(self, text: str, levels: Levels | None = None) -> Said:
        match = ANSWER.fullmatch(text.strip())
        if match is None:
            raise UnparseableVerdict("The model's answer is no light.")
        names = tuple(match[2].split(", ")) if match[2] else ()
        return Said(text.strip(), LIGHTS[match[1]], names, levels)

    def asker(self, tokenizer: PromptTokenizer, ends: Sequence[int]) -> "TrafficLightAsker":
        return TrafficLightAsker(self, tokenizer, tuple(ends))


class TrafficLightAsker(Asker):
    def __init__(self, family: TrafficLight, tokenizer: PromptTokenizer, ends: tuple[int, ...]) -> None:
        self._family, self._tokenizer, self._ends = family, tokenizer, ends
        firsts = {light: tokenizer.encode_text(f" {light}")[0] for light in LIGHTS}
        if len(set(firsts.values())) < len(LIGHTS):
            raise ValueError("the checkpoint's tokenizer cannot tell the lights apart by one token")
        self._green, self._amber, self._red = firsts.values()

    def steps(self, conversation: Conversation, policy: Policy, top_logprobs: int | None = None) -> Steps:
        prompt = self._family.prompt(conversation, policy.taxonomy)
        lights = (self._green, self._amber, self._red)
        light, listed = yield [
            Ask(prompt, (), 4, self._ends, lights, may_be_cut=True),
            Ask(prompt, tuple(self._tokenizer.encode_text(" Red:")), 64, self._ends, ()),
        ]
        levels = Levels(*(light.probability(0, id_) for id_ in (self._green, self._red, self._amber)))
        likeliest = max(LIGHTS, key=lambda name: levels.of(LIGHTS[name]))
        categories = f"Red:{self._text(listed)}"
        said = self._family.read(likeliest if likeliest == "Green" else f"{likeliest}{categories[3:]}", levels)
        decision = decide(said, policy)
        forced = self._family.read(categories) if decision.unsafe and said.severity is Severity.SAFE else None
        return Reading(said, decision, forced, no_scores="this family scores no categories")

    def _text(self, answer: Answer) -> str:
        return self._tokenizer.decode([id_ for id_ in answer.ids if id_ not in self._ends])
