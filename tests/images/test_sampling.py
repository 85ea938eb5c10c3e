"""Frames are chosen by the time that people see them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import ImageTooLarge
from server.images.picture import Disposal, Layer, Picture
from server.images.sampling import sampled, starts


def animation(*delays: float, loops: bool = True, size: tuple[int, int] = (10, 10), **options: Any) -> Picture:
    layers = tuple(Layer(0, 0, *size, (), float(delay), **options) for delay in delays)
    return Picture("GIF", *size, 16, layers, len(layers), loops)


@pytest.mark.parametrize(
    ("delays", "loops", "count", "frames"),
    [
        ([20, 60_000, 20, 20], True, 3, [0, 1, 3]),
        ([20, 60_000, 20, 20], True, 1, [1]),
        ([20, 60_000, 20, 20], False, 1, [3]),
        ([20, 60_000, 20, 20], False, 2, [1, 3]),
        ([20, 60_000, 20, 30_000, 20], True, 3, [0, 1, 3]),
        ([20, 60_000, 20, 60_000, 20, 60_000, 20], True, 3, [0, 1, 5]),
        ([100] * 5, True, 3, [0, 2, 4]),
        ([100] * 5, True, 2, [0, 4]),
        ([100] * 2, True, 3, [0, 1]),
        ([0, 10, 11, 50], True, 1, [0]),
        ([11, 50, 10, 0], True, 1, [2]),
    ],
)
def test_what_is_shown_longest_is_among_the_frames(delays, loops, count, frames):
    assert sampled(animation(*delays, loops=loops), count) == frames


delays = st.lists(st.integers(0, 70_000), min_size=1, max_size=60)


@given(delays, st.integers(1, 9), st.booleans())
def test_as_many_frames_as_there_may_be_are_chosen_and_the_longest_one_always(durations, count, loops):
    picture = animation(*durations, loops=loops)
    chosen = sampled(picture, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(durations))
    shown = [layer.shown_ms for layer in picture.layers]
    if loops:
        assert max(shown) == max(shown[index] for index in chosen)
    else:
        assert len(durations) - 1 in chosen


@given(delays, st.integers(3, 9))
def test_no_frame_that_takes_half_of_the_time_is_left_out(durations, count):
    picture = animation(*durations)
    shown = [layer.shown_ms for layer in picture.layers]
    assert {index for index, ms in enumerate(shown) if ms > sum(shown) / 2} <= set(sampled(picture, count))


def test_a_longest_frame_that_cannot_be_reached_is_not_left_out_in_silence():
    with pytest.raises(ImageTooLarge, match="longest"):
        sampled(animation(*[20] * 1500, 60_000), 3)
    assert 1500 in sampled(animation(*[20] * 1500, 60_000, opaque=True), 3)


def test_frames_that_hide_or_clear_everything_need_none_before_them():
    size = (10, 10)
    layers = (
        Layer(0, 0, *size, (), opaque=True),
        Layer(2, 2, 4, 4, ()),
        Layer(0, 0, *size, (), disposal=Disposal.CLEAR),
        Layer(2, 2, 4, 4, ()),
        Layer(0, 0, *size, (), opaque=True, disposal=Disposal.RESTORE),
        Layer(2, 2, 4, 4, ()),
        Layer(0, 0, *size, (), over=False),
    )
    assert starts(Picture("GIF", *size, 16, layers, len(layers))) == [0, 0, 0, 3, 4, 3, 6]
