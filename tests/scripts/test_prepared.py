"""Whether an environment is complete, told from its packages' metadata alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_prepared_agrees_with_this_environment_and_sees_what_is_missing(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts/prepared.py", scripts)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def prepared(requirements: str, *words: str) -> tuple[int, str]:
        (tmp_path / "requirements.txt").write_text(requirements)
        command = [sys.executable, scripts / "prepared.py", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr

    given = (ROOT / "requirements.txt").read_text()
    assert prepared(given, "test") == (0, "")
    assert prepared(given + 'absent-one; sys_platform == "none"\n') == (0, "")
    for line, said in (("absent-one>=2", "absent-one>=2"), ("numpy>=1000", "numpy>=1000 (has ")):
        code, error = prepared(f"{given}{line}\n")
        assert code == 1 and f"lacks {said}" in error


def test_prepared_follows_what_the_requirements_require(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/prepared.py", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("made-up[more]\n")
    info = tmp_path / "site" / "made_up-1.0.dist-info"
    info.mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\nProvides-Extra: more\n"
    for requires, code in (("numpy", 0), ("absent-two; extra == 'less'", 0), ("absent-two", 1),
                           ("absent-two; extra == 'more'", 1), ("made-up[less]", 0)):
        (info / "METADATA").write_text(f"{metadata}Requires-Dist: {requires}\n")
        done = subprocess.run([sys.executable, tmp_path / "scripts/prepared.py"], capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
        assert done.returncode == code, (requires, done.stderr)
