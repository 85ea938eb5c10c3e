"""What the answers of all dialects have in common: how they are described, and the native verdict."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ABSENT: Any = None
"""The default of a key that is left out where it has no value. It is never null unless its type says so."""


def _without_defaults(schema: dict[str, Any]) -> None:
    for value in schema["properties"].values():
        value.pop("default", None)


class ReplyModel(BaseModel):
    """Base of all answers: a key that is not ABSENT by default is always there, and there are no others."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_defaults)


Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Moment = Annotated[int, Field(ge=0, description="Seconds since 1970.")]
EmptyList = Annotated[list[Any], Field(max_length=0)]
EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]


class GuardUsage(ReplyModel):
    prompt_tokens: Count
    cached_tokens: Count
    completion_tokens: Count
    images: Count
    frames: Count
    frames_unseen: Count
    tiles: Count


class GuardTiming(ReplyModel):
    queued: Seconds
    computed: Seconds


class GuardAbout(ReplyModel):
    text: Annotated[str, Field(description="The field of the request that held it.")]
    message: Annotated[int, Field(ge=1)] | None


class Guard(ReplyModel):
    """The native verdict. Where the scores are null, `no_scores` says why."""

    verdict: Literal["safe", "unsafe"]
    p_unsafe: Probability | None
    threshold: Probability
    verdict_mass: float | None
    categories: list[str]
    category_scores: dict[str, Probability] | None
    category_score_method: Literal["written_list", "first_code", "upper_bound"] | None = Field(
        description="Where the scores come from: the list that the model wrote; the first code that it would write, had"
        " it said unsafe; or P(unsafe), which no code exceeds."
    )
    no_scores: str | None
    images_unseen: Count
    raw_text: str
    finish_reason: Literal["stop"]
    passes: Annotated[int, Field(ge=1, description="Prompts that were asked; the strictest verdict is told.")]
    about: GuardAbout | None = Field(description="The text that decided it; null for the whole message to judge.")
    lookalikes: Annotated[
        int,
        Field(ge=0, description="Messages that the texts could be read as; 0 where none holds a conversation's marks."),
    ]
    model: str
    backend: str
    cache: Literal["hit", "joined"] | None
    provider: str | None
    cost: float | None
    usage: GuardUsage
    timing: GuardTiming
    finished_prompt: Literal["prompt_policy", "server_policy"] = ABSENT
