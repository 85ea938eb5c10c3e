"""The keyed hash of a conversation: it finds the record of a text that somebody still has, and reveals none."""

import hmac

from server.domain.conversation import Conversation, ImagePart

LARGE = 2**20
"""From so many characters on, the hash is made in a thread."""


def size_of(conversation: Conversation) -> int:
    """Characters of all texts and images."""
    return sum(
        len(part.url if isinstance(part, ImagePart) else part.text)
        for turn in conversation.turns
        for part in turn.parts
    )


def content_hash(key: bytes, conversation: Conversation) -> str:
    """64 hexadecimal digits, equal for conversations of the same turns, texts and images under the same key.

    The fields of the request that held them make no difference. An image counts as the request sent it: one behind an
    `http(s)` URL by its URL.
    """
    digest = hmac.new(key, digestmod="sha256")
    for turn in conversation.turns:
        digest.update(b"turn " + turn.role.value.encode() + b"\n")
        for part in turn.parts:
            kind, said = (b"image", part.url) if isinstance(part, ImagePart) else (b"text", part.text)
            content = said.encode("utf-8", "surrogatepass")
            # The length comes first, so that two different conversations never look alike.
            digest.update(b"%s %d %d\n" % (kind, part.operator, len(content)))
            digest.update(content)
    return digest.hexdigest()
