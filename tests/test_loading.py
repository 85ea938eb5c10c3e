"""What cannot be served is refused before anything is downloaded or loaded."""

from dataclasses import replace

import pytest

from server import loading
from server.checkpoints import fit
from server.checkpoints.fit import Gpu
from server.checkpoints.profile import load_profile
from server.domain.errors import InvalidRequest, OperatorError
from server.settings import Settings

REAL = "llama-guard-4-12b"


@pytest.fixture
def gpus(monkeypatch):
    """Sets the cards of the machine, and fails the test when a checkpoint is asked for."""

    def no_download(_: object) -> None:
        raise AssertionError("the checkpoint was asked for")

    monkeypatch.setattr(loading, "locate", no_download)

    def install(*gibibytes: int) -> None:
        cards = tuple(Gpu(f"card of {size} GiB", size << 30) for size in gibibytes)
        monkeypatch.setattr(fit, "find_gpus", lambda: cards)

    return install


def test_the_real_model_is_refused_without_a_gpu(gpus):
    gpus()
    with pytest.raises(OperatorError, match="needs a CUDA GPU"):
        loading.load_backend(Settings(), load_profile(REAL))


@pytest.mark.parametrize("cards", [(24,), (8, 48)])
def test_a_profile_that_fits_no_card_is_refused(gpus, cards):
    gpus(*cards)
    with pytest.raises(OperatorError, match="does not fit"):
        loading.load_backend(Settings(), load_profile(REAL))


@pytest.mark.parametrize(
    ("cards", "profile"), [((80,), REAL), ((8, 80), REAL), ((24,), f"{REAL}:24gb"), ((), "pocket"), ((4,), "pocket")]
)
def test_what_fits_is_asked_for(gpus, cards, profile):
    gpus(*cards)
    with pytest.raises(AssertionError, match="asked for"):
        loading.load_backend(Settings(), load_profile(profile))


def test_a_model_shared_by_several_cards_is_left_to_vllm(gpus):
    gpus(24, 24)
    profile = load_profile(REAL)
    with pytest.raises(AssertionError, match="asked for"):
        loading.load_backend(Settings(), replace(profile, engine={**profile.engine, "tensor_parallel_size": 2}))


@pytest.mark.parametrize("codes", ["S15", "S0", "s1", "S1;S2", "S1 S2", "hate", "S1,S99"])
def test_only_categories_of_the_model_can_be_excluded(codes: str) -> None:
    with pytest.raises(InvalidRequest, match=r"not in the policy\. Its categories are S1, S2"):
        loading.operator_policy(Settings(excluded_categories=codes), load_profile("pocket"))
