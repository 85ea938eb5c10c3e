"""Chooses the frames of an animation for the model, by how long people see them."""

from collections.abc import Sequence

from server.domain.errors import ImageTooLarge
from server.images.picture import Disposal, Layer, Picture

MAX_ANIMATION_FRAMES = 1000
MAX_ANIMATION_PIXELS = 100_000_000
"""The most frames, and pixels of them, that are composed to reach a sampled one: about two seconds of work."""


def sampled(picture: Picture, count: int) -> list[int]:
    """At most `count` frames, in order, among those that can be reached with bounded work.

    Chosen first is the frame that is shown longest: for an animation that ends, its last one, which stays. Next are the
    longest of the passing frames, and the first frame, which is all that still viewers show. Then follow frames that
    take more than their share of the remaining time, and the rest are chosen evenly by time.

    Raises ImageTooLarge if a frame that is shown longest lies too deep in the file.
    """
    layers = picture.layers
    shown = [layer.shown_ms for layer in layers]
    standing = [] if picture.loops else [len(layers) - 1]
    longest = max(range(len(layers)), key=shown.__getitem__)
    chosen = list(dict.fromkeys([*standing, longest, 0]))[:count]
    reached = _reached(picture, count)
    if not set(chosen) <= reached:
        raise ImageTooLarge(
            "The frame that this animation shows longest comes after too many others. Send a shorter animation."
        )
    rest = sorted(reached.difference(chosen))
    while rest and len(chosen) < count:
        free = min(count - len(chosen), len(rest))
        time = sum(shown[index] for index in rest)
        longest = max(rest, key=shown.__getitem__)
        if shown[longest] * (free + 1) <= time:
            chosen += _evenly(rest, shown, free)
            break
        chosen.append(longest)
        rest.remove(longest)
    return sorted(chosen)


def _evenly(rest: Sequence[int], shown: Sequence[float], count: int) -> list[int]:
    """The frames that are shown shortly before the end of each of `count` equal stretches of time.

    No frame is shown long enough to be chosen twice.
    """
    chosen: list[int] = []
    stretch = sum(shown[index] for index in rest) / count
    end = 0.0
    for index in rest:
        end += shown[index]
        if len(chosen) < count and end >= stretch * (len(chosen) + 7 / 8):
            chosen.append(index)
    return chosen


def starts(picture: Picture) -> list[int]:
    """For each frame, the first one that must be drawn for it. Frames before that are no longer visible."""
    found: list[int] = []
    start = 0
    for index, layer in enumerate(picture.layers):
        covers = _covers(layer, picture)
        found.append(index if covers and (layer.opaque or not layer.over) else start)
        if layer.disposal is Disposal.KEEP:
            start = found[-1]
        elif layer.disposal is Disposal.CLEAR and covers:
            start = index + 1
    return found


def _covers(layer: Layer, picture: Picture) -> bool:
    return (
        layer.left <= 0
        and layer.top <= 0
        and layer.left + layer.width >= picture.width
        and layer.top + layer.height >= picture.height
    )


def _reached(picture: Picture, count: int) -> set[int]:
    """Frames that can be composed with bounded work: the first ones, and those that depend on few others."""
    pixels, drawn = [0], [0]
    for layer in picture.layers:
        # Frames that are cleared or undone need not be drawn for later ones.
        needed = layer.disposal is Disposal.KEEP
        pixels.append(pixels[-1] + layer.pixels * needed)
        drawn.append(drawn[-1] + needed)

    def within(start: int, index: int, share: int) -> bool:
        return (drawn[index] - drawn[start]) * share < MAX_ANIMATION_FRAMES and (
            pixels[index] - pixels[start] + picture.layers[index].pixels
        ) * share <= MAX_ANIMATION_PIXELS

    return {index for index, start in enumerate(starts(picture)) if within(0, index, 1) or within(start, index, count)}
