import base64
import io
import itertools
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from benchmarks.traffic import LOADS, PICTURE_SIZES, Load, parse_mix


def contents(name: str, count: int, seed: int = 1, salt: str = "1") -> list[Any]:
    return list(itertools.islice(Load(name, LOADS[name]).contents(seed, salt), count))


def pixels(part: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))


@pytest.mark.parametrize(("name", "fewest", "most"), [("short", 15, 175), ("long", 1450, 1600)])
def test_texts_have_the_length_that_the_load_promises(name, fewest, most):
    lengths = [len(text.split()) for text in contents(name, 50)]
    assert fewest <= min(lengths)
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) > 20


def test_nothing_is_asked_twice():
    assert len(set(contents("short", 500))) == 500


def test_contenders_get_equal_texts_but_for_a_salt_at_the_front():
    for ours, theirs in zip(contents("short", 20, salt="1"), contents("short", 20, salt="2"), strict=True):
        assert ours != theirs
        assert ours.partition(". ")[2] == theirs.partition(". ")[2]


def test_the_repeated_load_asks_a_few_texts_often_and_most_rarely():
    counts = Counter(contents("repeated", 2000)).most_common()
    assert len(counts) <= 200
    assert counts[0][1] > 20 * counts[-1][1]
    assert not set(contents("repeated", 500, salt="2")) & set(contents("repeated", 500, salt="1"))


def test_each_picture_is_another_one_for_another_contender_too():
    asked = contents("image3", 1) + contents("image3", 1, salt="2")
    pictures = [pixels(part) for content in asked for part in content[:3]]
    assert all(content[3]["type"] == "text" and len(content) == 4 for content in asked)
    assert {picture.size for picture in pictures} <= set(PICTURE_SIZES)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_the_whole_context_is_nearly_filled():
    (text,) = itertools.islice(Load("whole", LOADS["whole"], 4096).contents(1, "1"), 1)
    assert isinstance(text, str)
    assert len(text.split()) == 4096 - 400


def test_a_mix_is_shares_of_one():
    assert parse_mix("short=70,long=10,image2=20") == {"short": 0.7, "long": 0.1, "image2": 0.2}


@pytest.mark.parametrize(
    "spec", ["", "short", "short=0", "short=-1", "tall=1", "image=1", "short=1,short=2", "short=x"]
)
def test_a_mix_that_makes_no_sense_is_refused(spec):
    with pytest.raises(ValueError):
        parse_mix(spec)


def test_a_mix_comes_in_its_shares():
    load = Load("mix", {"short": 0.5, "long": 0.5})
    texts = itertools.islice(load.contents(1, "1"), 200)
    longs = sum(isinstance(text, str) and len(text.split()) > 1000 for text in texts)
    assert 70 < longs < 130


def test_loads_with_images_get_more_time():
    assert Load("short", LOADS["short"]).goodput_limit_ms == 100
    assert Load("mixed", LOADS["mixed"]).goodput_limit_ms == 500
