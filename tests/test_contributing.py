"""CONTRIBUTING.md keeps its word: what it names exists, and its examples do what it says."""

import re
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from server.api.http.dialect import Dialect
from server.domain import events
from server.domain.conversation import Role
from server.domain.events import Judged, on, publish
from tests.domain.test_verdict import judged

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_files_that_it_names_exist():
    named = set(re.findall(r"`((?:server|tests|benchmarks|docs)/[\w./-]+)`", PAGE))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_commands_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", PAGE, re.MULTILINE))
    assert targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_metric_of_the_example_counts(monkeypatch: pytest.MonkeyPatch):
    (example,) = (source for source in EXAMPLES if "@on(" in source)
    monkeypatch.setattr(events, "_listeners", {})
    registry = CollectorRegistry()
    names = {"Counter": partial(Counter, registry=registry), "on": on, "Judged": Judged, "Role": Role}
    exec(example, names)
    for text, role in (("unsafe\nS1", Role.AGENT), ("unsafe\nS1", Role.USER), ("safe", Role.AGENT)):
        publish(Judged(judged(text), role, 0.1))
    assert registry.get_sample_value("guard_unsafe_responses_total") == 1


def test_the_dialect_of_the_example_is_the_one_that_is_tested():
    (example,) = (source for source in EXAMPLES if "Dialect(" in source)
    function, _, declared = example.partition("\n\n\n")
    assert function in (ROOT / "tests/api/test_dialects.py").read_text(encoding="utf-8")
    assert set(re.findall(r"(\w+)=", declared)) <= set(Dialect.__dataclass_fields__)
