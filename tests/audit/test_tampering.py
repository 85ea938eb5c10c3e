"""`verify` finds whatever is done to a trail, and blames none that nobody touched."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.audit.trail import timestamp
from tests.audit.trails import NAME, checked, copied, files, fill, finished, trail


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chains, one after the other, in several files."""
    folder = tmp_path_factory.mktemp("trail")
    finished(folder, 1)
    finished(folder, 2, records=15)
    return folder


def lines_of(folder: Path) -> list[tuple[Path, list[bytes]]]:
    return [(file, file.read_bytes().splitlines(keepends=True)) for file in files(folder)]


def test_a_trail_that_nobody_touched_is_whole(whole: Path) -> None:
    report = checked(whole)
    assert report.whole
    assert [(chain.records, chain.sealed, chain.unsealed) for chain in report.chains] == [(32, 32, 0), (17, 17, 0)]
    assert all(chain.ended and chain.crash is None for chain in report.chains)
    assert len(files(whole)) > 3


@settings(max_examples=50)
@given(st.data())
def test_a_byte_that_was_changed_is_found(whole: Path, data: st.DataObject) -> None:
    folder = copied(whole, whole.parent / "changed")
    file = data.draw(st.sampled_from(files(folder)))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    assert not checked(folder).whole


@settings(max_examples=50)
@given(st.data())
def test_a_record_that_was_removed_is_found(whole: Path, data: st.DataObject) -> None:
    folder = copied(whole, whole.parent / "removed")
    file, lines = data.draw(st.sampled_from(lines_of(folder)))
    first = data.draw(st.integers(0, len(lines) - 1))
    count = data.draw(st.integers(1, len(lines) - first))
    file.write_bytes(b"".join(lines[:first] + lines[first + count :]))
    assert not checked(folder).whole


@settings(max_examples=50)
@given(st.data())
def test_records_that_were_swapped_are_found(whole: Path, data: st.DataObject) -> None:
    folder = copied(whole, whole.parent / "swapped")
    every = [(file, number) for file, lines in lines_of(folder) for number in range(len(lines))]
    one, other = data.draw(st.lists(st.sampled_from(every), min_size=2, max_size=2, unique=True))
    content = dict(lines_of(folder))
    content[one[0]][one[1]], content[other[0]][other[1]] = content[other[0]][other[1]], content[one[0]][one[1]]
    for file, lines in content.items():
        file.write_bytes(b"".join(lines))
    assert not checked(folder).whole


@settings(max_examples=50)
@given(st.data())
def test_a_trail_that_was_cut_off_is_found(whole: Path, data: st.DataObject) -> None:
    folder = copied(whole, whole.parent / "cut")
    there = files(folder)
    cut = data.draw(st.integers(0, len(there) - 1))
    chain = there[cut].name.partition(".")[0]
    size = there[cut].stat().st_size
    with there[cut].open("r+b") as file:
        file.truncate(data.draw(st.integers(0, size - 1)))
    for later in there[cut + 1 :]:
        if later.name.startswith(chain):
            later.unlink()
    assert not checked(folder).whole


@pytest.mark.parametrize("number", range(4))
def test_a_file_that_is_missing_is_found(whole: Path, number: int) -> None:
    folder = copied(whole, whole.parent / "missing")
    files(folder)[number].unlink()
    assert not checked(folder).whole


@settings(max_examples=50)
@given(st.data())
def test_a_seal_that_was_changed_is_found(whole: Path, data: st.DataObject) -> None:
    folder = copied(whole, whole.parent / "seals")
    file = data.draw(st.sampled_from(sorted((folder / "seals").iterdir())))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 2))  # without its last break the last seal looks like a crash
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    assert not checked(folder).whole


def test_a_record_of_another_chain_does_not_pass_for_one_of_this(whole: Path) -> None:
    folder = copied(whole, whole.parent / "moved")
    first, second = NAME.format(1), NAME.format(2)
    for file in files(folder):
        if file.name.startswith(second):
            file.replace(file.with_name(file.name.replace(second, first)))
    assert not checked(folder).whole


def test_the_whole_chain_of_a_process_cannot_vanish_with_its_seals(whole: Path) -> None:
    """The first record of the next process names its head."""
    folder = copied(whole, whole.parent / "vanished")
    for place in ("records", "seals"):
        for file in (folder / place).glob(f"{NAME.format(1)}*"):
            file.unlink()
    (chain,) = [chain for chain in checked(folder).chains if chain.fault]
    assert chain.chain == NAME.format(1)


def test_a_fault_says_where_it_is_and_up_to_which_seal_all_is_whole(tmp_path: Path) -> None:
    made = trail(tmp_path, rotate_bytes=2**20)
    fill(made, 4)
    made.seal()
    fill(made, 5)
    made.end()
    made.close()
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes().replace(b'"n":7,', b'"n":7 ,').replace(b"req_6", b"req_9"))
    (chain,) = checked(tmp_path).chains
    assert chain.fault == f"{file.name}, line 8: record 7 was altered, or does not belong here"
    assert (chain.records, chain.sealed) == (7, 5)


# --- A process that is killed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process that died with four sealed records and one more."""
    folder = tmp_path_factory.mktemp("killed") / "trail"
    made = trail(folder, rotate_bytes=2**20)
    fill(made, 3)
    made.seal()
    fill(made, 1)
    made.close()
    return folder


@settings(max_examples=50)
@given(st.integers(1, 300))
def test_a_line_that_a_killed_process_left_behind_is_no_tampering(unsealed: Path, cut: int) -> None:
    folder = copied(unsealed, unsealed.parent / "torn")
    (file,) = files(folder)
    os.truncate(file, file.stat().st_size - cut)
    (chain,) = checked(folder).chains
    assert chain.fault is None
    assert chain.crash is not None
    assert (chain.records, chain.sealed) == (4, 4)


def test_the_next_process_goes_on_from_what_is_whole(unsealed: Path) -> None:
    folder = copied(unsealed, unsealed.parent / "next")
    (file,) = files(folder)
    os.truncate(file, file.stat().st_size - 10)
    finished(folder, 2, records=1)
    assert checked(folder).whole
    os.truncate(file, file.stat().st_size - 500)
    assert not checked(folder).whole


def test_a_sealed_line_that_is_cut_off_is_tampering(tmp_path: Path) -> None:
    made = trail(tmp_path, rotate_bytes=2**20)
    fill(made, 3)
    made.seal()
    made.close()
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    assert not checked(tmp_path).whole


# --- What is too old -------------------------------------------------------------------------------------


def test_old_files_go_and_the_rest_is_whole(tmp_path: Path) -> None:
    clock = [1000.0]
    made = trail(tmp_path, keep_s=100, now=lambda: clock[0])
    fill(made, 30, at=1000)
    before = len(files(tmp_path))
    clock[0] = 1200.0
    fill(made, 5, at=1200)
    assert made.drop_old() > 0
    fill(made, 5, at=1200)
    made.end()
    made.close()
    assert len(files(tmp_path)) < before
    (chain,) = checked(tmp_path).chains
    assert chain.fault is None
    assert chain.dropped > 0
    assert chain.dropped + chain.records == chain.sealed == 42


def test_the_oldest_records_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    finished(tmp_path, 1, records=20)
    made = trail(tmp_path, 2, keep_bytes=9000)
    fill(made, 40)
    before = sum(file.stat().st_size for file in files(tmp_path))
    assert before > 12_000
    assert made.drop_old() > 1
    left = sum(file.stat().st_size for file in files(tmp_path))
    assert 4000 < left <= 9000
    assert made.drop_old() == 0
    made.end()
    made.close()
    report = checked(tmp_path)
    assert report.whole
    assert NAME.format(1) not in {file.name.partition(".")[0] for file in files(tmp_path)}, "the oldest chain first"


def test_the_file_that_another_process_writes_to_stays(tmp_path: Path) -> None:
    idle = trail(tmp_path, 1)
    finished(tmp_path, 2, records=1)
    made = trail(tmp_path, 3, keep_s=100, now=lambda: time.time() + 1000)
    assert made.drop_old() == 1
    assert {file.name.partition(".")[0] for file in files(tmp_path)} == {NAME.format(1), NAME.format(3)}
    assert checked(tmp_path).whole
    idle.close()
    made.close()


def test_files_that_somebody_else_deleted_are_missing_whatever_their_age(tmp_path: Path) -> None:
    made = trail(tmp_path, keep_s=100)
    fill(made, 60, at=1)
    assert made.drop_old() > 1
    fill(made, 60, at=2)
    made.end()
    made.close()
    files(tmp_path)[0].unlink()
    assert not checked(tmp_path).whole


def test_two_processes_write_at_the_same_time(tmp_path: Path) -> None:
    one, other = trail(tmp_path, 1), trail(tmp_path, 2)
    for _ in range(20):
        fill(one, 1)
        fill(other, 2)
    for made in (other, one):
        made.end()
        made.close()
    report = checked(tmp_path)
    assert report.whole
    assert [chain.records for chain in report.chains] == [22, 42]


def test_times_are_utc() -> None:
    assert timestamp(0.25) == "1970-01-01T00:00:00.250000Z"
