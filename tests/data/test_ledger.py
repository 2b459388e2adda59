import csv
from pathlib import Path

import pytest

from rdcd.data.ledger import Ledger
from rdcd.errors import BadImage, UserError


def bad(first: int, count: int) -> list[BadImage]:
    return [BadImage(f"{i:05d}.jpg", "cut short") for i in range(first, first + count)]


def rows(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row["path"] for row in csv.DictReader(file)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bad_files.csv"


def test_no_bad_file_no_ledger_and_that_of_earlier_work_goes(path: Path) -> None:
    path.write_text("path,reason\nold.jpg,old\n")
    ledger = Ledger(path)
    ledger.add([], seen=5000)
    ledger.settle()
    assert not path.exists() and not ledger.bad


def test_every_file_is_listed_once_and_at_once(path: Path) -> None:
    ledger = Ledger(path, max_bad_share=0.9)
    assert ledger.add(bad(0, 2), seen=3) == list(ledger.bad.values())
    assert rows(path) == ["00000.jpg", "00001.jpg"]
    assert [error.path for error in ledger.add(bad(1, 2) + bad(1, 2), seen=10)] == ["00002.jpg"]
    assert rows(path) == ["00000.jpg", "00001.jpg", "00002.jpg"]
    ledger.settle()


def test_the_share_is_judged_after_a_thousand_pictures(path: Path) -> None:
    ledger = Ledger(path, max_bad_share=0.1, key="data.max_bad_share")
    ledger.add(bad(0, 3), seen=3)  # tiny counts say little
    for i in range(99):
        ledger.add(bad(3 + i, 1), seen=10)
    with pytest.raises(UserError) as error:
        ledger.add(bad(102, 50), seen=57)
    assert str(error.value) == (
        f"152 of the first 1,050 pictures (14.5%) could not be read, more than data.max_bad_share=0.1 allows; the "
        f"first: 00000.jpg (cut short); {path} lists all: mend or remove them, or allow a larger share")
    assert len(rows(path)) == 152  # before it ends


def test_a_share_that_is_just_allowed(path: Path) -> None:
    ledger = Ledger(path, max_bad_share=0.1)
    ledger.add(bad(0, 100), seen=1000)
    ledger.settle()
    Ledger(path, max_bad_share=0.29).add(bad(0, 290), seen=1000)  # 0.29 * 1000 is less than 290
    ledger.add([], seen=1999)
    ledger.add(bad(0, 200), seen=1)
    with pytest.raises(UserError, match=r"201 of the first 2,001 pictures \(10.0%\)"):
        ledger.add(bad(300, 1), seen=1)


def test_at_the_end_few_pictures_are_judged_too_and_the_next_folder_by_itself(path: Path) -> None:
    ledger = Ledger(path)
    ledger.add([], seen=9000)
    ledger.settle()
    ledger.add(bad(7, 1), seen=4)
    with pytest.raises(UserError, match=r"1 of 4 pictures \(25.0%\) .* max_bad_share=0.1 allows; the first: 00007.jpg"):
        ledger.settle()
    assert rows(path) == ["00007.jpg"]


def test_ends_of_the_scale(path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of the first 2 pictures \(50.0%\)"):
        Ledger(path, max_bad_share=0).add(bad(0, 1), seen=2)  # no need to wait
    ledger = Ledger(path, max_bad_share=1)
    ledger.add(bad(0, 2000), seen=2000)
    ledger.settle()
    Ledger(path).settle()  # of nothing at all
    for share in (-0.1, 1.1, "all", None, True):
        with pytest.raises(UserError, match=f"max_bad_share={share}: expected a number of at least 0 and at most 1"):
            Ledger(path, max_bad_share=share, key="data.max_bad_share")


def test_replacements_that_are_bad_too_are_listed_and_not_counted(path: Path) -> None:
    ledger = Ledger(path)
    for i in range(50):  # a folder of 500 bad files among a million, met by few and looked through by each
        ledger.add(bad(10 * i, 100), seen=20, failed=1)
    ledger.settle()
    assert len(rows(path)) == 590


def test_repetitions_do_not_change_the_share(path: Path) -> None:
    ledger = Ledger(path)
    for _ in range(10):  # epochs
        ledger.add(bad(0, 90), seen=1000)
    ledger.settle()
    assert len(rows(path)) == 90


def test_a_resumed_run_keeps_its_rows(path: Path) -> None:
    Ledger(path).add([BadImage('a "b", c.jpg', "x, y"), *bad(0, 2)], seen=100)
    ledger = Ledger(path, keep=True)
    assert rows(path) == ["00000.jpg", "00001.jpg", 'a "b", c.jpg']
    assert [error.path for error in ledger.add(bad(0, 3), seen=100)] == ["00002.jpg"]
    assert rows(path) == ["00000.jpg", "00001.jpg", "00002.jpg", 'a "b", c.jpg']
    assert ledger.bad['a "b", c.jpg'].reason == "x, y"


def test_many_are_written_in_few_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    monkeypatch.setattr("rdcd.data.ledger.write_ledger", lambda path, bad: writes.append(len(bad)))
    ledger = Ledger(path, max_bad_share=1)
    for error in bad(0, 5000):
        ledger.add([error], seen=1)
    ledger.settle()
    assert writes[:19] == list(range(1, 20)) and writes[-1] == 5000 and len(writes) < 150
