"""When two requests are one question: a digest of all that the answer could depend on."""

import hashlib
from typing import TYPE_CHECKING, TypeAlias

from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart, Role
from server.domain.policy import Policy
from server.images import scheme_of

if TYPE_CHECKING:
    from hashlib import _Hash


class AskedOnce:
    """The key of a question that may have another answer next time. It equals no other key."""

    __slots__ = ()


Key: TypeAlias = bytes | AskedOnce


class Questions:
    """Makes the keys by which questions are told apart. What was asked cannot be read from a key."""

    def __init__(self, served: str, policy: Policy) -> None:
        """`served` says which model answers, and how it is asked. `policy` is the one that most requests bring."""
        self._served = served
        self._policy = policy
        self._begun = self._begin(policy)

    def key(self, conversation: Conversation, policy: Policy, handling: Handling, *, joined: bool = False) -> Key:
        """Equal for equal questions of one tenant, and for no others.

        `joined` questions are asked in fewer passes (server.moderation.passes), so they may have another answer.
        Being worked on in the background is no part of a question, as it changes no answer. The field that held an
        image is, as errors name it. What lies behind an http(s) URL may change, so such a question is asked once.
        """
        digest = self._begun.copy() if policy is self._policy else self._begin(policy)
        _add(digest, repr((*handling.distinct, joined)))
        for turn in conversation.turns:
            digest.update(_ROLES[turn.role])
            for part in turn.parts:
                if not isinstance(part, ImagePart):
                    digest.update(_OPERATORS_TEXT if part.operator else _TEXT)
                    _add(digest, part.text)
                elif scheme_of(part.url) == "data":
                    digest.update(_OPERATORS_IMAGE if part.operator else _IMAGE)
                    _add(digest, part.param)
                    _add(digest, part.url)
                else:
                    return AskedOnce()
        return digest.digest()

    def _begin(self, policy: Policy) -> "_Hash":
        digest = hashlib.sha256()
        _add(digest, self._served)
        _add(digest, repr(policy))
        return digest


def _add(digest: "_Hash", text: str) -> None:
    """Every field comes behind its length in bytes, so that no two sequences of fields look alike."""
    content = text.encode("utf-8", "surrogatepass")
    digest.update(len(content).to_bytes(8, "big"))
    digest.update(content)


def _field(text: str) -> bytes:
    """The bytes of `_add`, for what is always the same."""
    return len(text).to_bytes(8, "big") + text.encode("ascii")


_TEXT, _IMAGE = _field("text"), _field("image")
_OPERATORS_TEXT, _OPERATORS_IMAGE = _field("operator's text"), _field("operator's image")
_ROLES = {role: _field(role.value) for role in Role}
