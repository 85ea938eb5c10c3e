"""The models that judge here, by name, as callers, operators and dashboards see them."""

from dataclasses import dataclass

from server.backends.base import Backend
from server.backends.fallback import parts
from server.backends.openrouter.backend import OpenRouterBackend
from server.checkpoints.profile import Profile
from server.moderation.sight import Sight
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Judge:
    """A model, and the backend that asks it. `stand_in` marks a model that is not a moderator."""

    model: str
    backend: str
    profile: str
    stand_in: bool


def judges_of(settings: Settings, profile: Profile, backend: Backend) -> tuple[Judge, ...]:
    """All models that may judge, in the order in which they are asked.

    A remote backend does not run the profile's model, but the one that the settings name.
    """
    return tuple(
        Judge(settings.openrouter_model, part.name, profile.name, stand_in=False)
        if part.name == OpenRouterBackend.name
        else Judge(profile.served_as[0], part.name, profile.name, profile.stand_in)
        for part in parts(backend)
    )


def sight_of(settings: Settings, profile: Profile, backend: Backend) -> Sight:
    """How pictures are handled. A remote model sees them, unless the profile says that the model takes none."""
    names = [part.name for part in parts(backend)]
    remote_first = names[0] == OpenRouterBackend.name
    return Sight(
        model=profile.served_as[0],
        sees=profile.images and (remote_first or profile.sees_images),
        takes=profile.images,
        limit=min(settings.max_images, profile.image_limit),
        judge_text=settings.unseen_images == "judge_text",
        seeing=frozenset(names) & {OpenRouterBackend.name},
    )
