import pytest

from benchmarks import limits, roofline
from benchmarks.traffic import PICTURE_SIZES

NETWORK, CARD = roofline.LLAMA_GUARD_4, roofline.DEVICES["h100"]


def counted(prompt: float, computed: float, passes: float) -> dict[str, float]:
    return {"prompt_tokens": prompt, "computed_tokens": computed, "forward_passes": passes}


def least(figures: dict[str, float], **shares: float) -> float:
    return limits.least_seconds(NETWORK, CARD, "bf16", figures, shares or {"short": 1.0})


def test_the_limit_of_a_cached_preamble_is_that_of_the_physics():
    # A message of 100 tokens and the prompt around it, of which 144 tokens are cached: 273 verdicts a second.
    assert 1 / least(counted(303, 159, 1)) == pytest.approx(273, rel=0.02)


def test_what_is_computed_more_takes_longer():
    assert least(counted(303, 303, 1)) > least(counted(303, 159, 1))
    assert least(counted(303, 159, 3)) > least(counted(303, 159, 1))


def test_pictures_take_the_vision_encoders_time_too():
    tiles = sum(roofline.image_tiles(*size) for size in PICTURE_SIZES) / len(PICTURE_SIZES)
    figures = counted(2000, 1850, 1)
    assert NETWORK.vision is not None
    encoder = least(figures, image2=0.5, short=0.5) - least(figures)
    assert encoder == pytest.approx(tiles * NETWORK.vision.flops_per_tile / CARD.bf16_flops)
