"""`rdcd doctor`: what works is ok, what is broken or absent is named with its fix."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rdcd import doctor as doctors
from rdcd.cli import main
from rdcd.doctor import attempt, doctor
from rdcd.errors import ChecksFailed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """Trials that import nothing large; what is tried can be changed."""
    trials = {name: (f"print('{name} works')", f"mend {name}") for name in doctors.TRIALS}
    monkeypatch.setattr(doctors, "TRIALS", trials)
    return trials


def test_this_environment_is_in_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The real thing: the tests could not run in another one."""
    assert main(["doctor", f"folder={tmp_path}/runs", f"out={tmp_path}/doctor.json"]) == 0
    said, record = capsys.readouterr().out, json.loads((tmp_path / "doctor.json").read_text())
    findings = {finding["what"]: finding for finding in record["findings"]}
    assert record["failed"] == 0 and not any(finding["verdict"] == "FAILED" for finding in findings.values())
    assert set(doctors.TRIALS) < set(findings) and "rdcd[wandb]" in findings and "rdcd[test]" not in findings
    assert "a convolution on" in findings["torch"]["found"] and "fonts" in findings["overlays"]["found"]
    assert "rdcd[wandb]" in said and "FAILED" not in said


@pytest.mark.parametrize(("code", "said"), [
    ("raise ImportError('libcudart.so.13 is missing')", "ImportError: libcudart.so.13 is missing"),
    ("import os; os.abort()", "it was ended by signal 6"),
    ("import sys; sys.exit(3)", "exit code 3")])
def test_a_library_that_is_broken_is_a_finding(quick: dict, capsys: pytest.CaptureFixture, tmp_path: Path,
                                               code: str, said: str) -> None:
    quick["faiss"] = (code, "mend faiss")
    with pytest.raises(ChecksFailed, match="1 of .* failed: faiss; what to do"):
        doctor(folder=tmp_path, out=tmp_path / "doctor.json")
    findings = json.loads((tmp_path / "doctor.json").read_text())["findings"]
    (broken,) = (finding for finding in findings if finding["verdict"] == "FAILED")
    assert said in broken["found"] and broken["advice"] == "mend faiss"
    assert "mend faiss" in capsys.readouterr().out


def test_one_that_is_stuck_is_given_up() -> None:
    assert attempt("import time; time.sleep(60)", seconds=0.5) == (False, "nothing after 0.5 s")


def test_packages_that_are_missing_or_too_old(quick: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=999", "no-such-package>=1", "rich", "absent; python_version < '3'", "other>=2; extra == 'more'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    with pytest.raises(ChecksFailed, match="failed: packages"):
        doctor(folder=tmp_path, out=tmp_path / "doctor.json")
    findings = {f["what"]: f for f in json.loads((tmp_path / "doctor.json").read_text())["findings"]}
    assert findings["packages"]["found"] == (f"numpy {metadata.version('numpy')} is installed, >=999 is needed; "
                                             f"no-such-package is not installed")
    assert findings["packages"]["advice"] == "pip install -r requirements.txt"
    assert findings["rdcd[more]"]["verdict"] == "note" and "other is not installed" in findings["rdcd[more]"]["found"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_to(quick: dict, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ChecksFailed, match="failed: disk"):
        doctor(folder=tmp_path / "runs")


def test_pythons_that_are_not_tested_are_a_note(quick: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "PYTHONS", ((2, 6), (2, 7)))
    python = next(finding for finding in doctor(folder=tmp_path) if finding.what == "python")
    assert python.verdict == "note" and "2.6 to 2.7 are tested" in python.advice and sys.executable in python.found
