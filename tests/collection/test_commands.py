"""`rdcd index …`, `search` and `dedup` as they are typed."""

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from rdcd import cli, provenance


def run(*words: object) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code
    finally:
        GlobalHydra.instance().clear()


def test_an_answer_from_a_folder(album: Path, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys,
                                 rows) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rdcd"])
    monkeypatch.setattr(provenance, "_run", {"command": None, "config": None})
    quick = "workers=0"
    assert run("index", "build", "index=ix", "images=album/2024", "model=thumbnail", quick) == 0
    assert run("index", "add", "index=ix", "images=album/2023", quick) == 0
    assert run("index", "info", "index=ix") == 0
    assert "pictures:             24\n" in capsys.readouterr().out
    assert run("search", "index=ix", "images=copies", quick) == 0
    assert run("search", "index=ix", "images=copies/copy0.jpg", quick) == 0
    assert run("dedup", "images=[album,copies]", "model=thumbnail", quick) == 0
    found, again, inside = sorted(Path("runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    assert "search" in found.name and "search" in again.name and inside.name.endswith("-dedup")
    assert len(rows(found / "matches.csv")) == len(rows(inside / "pairs.csv")) == 4
    assert len(rows(again / "matches.csv")) == 1
    assert '"command": "rdcd search index=ix images=copies' in (found / "matches.json").read_text()
    table = inside / "actions.csv"
    for words, pairs in (("keep=[folder:album/2023,format:jpg,newest]",), 4), ((f"not_duplicates={table}",), 0):
        assert run("dedup", "images=[album,copies]", "model=thumbnail", quick, "out=again", *words) == 0
        assert len(rows(Path("again") / "pairs.csv")) == pairs
    assert run("search", "index=ix", "images=copies", quick, "out=again", f"not_duplicates={table}") == 0
    assert rows(Path("again") / "matches.csv") == []
    capsys.readouterr()
    for words, said in (("keep=best", "keep=best: expected one of pixels, bytes"),
                        ("not_duplicates=none.csv", "not_duplicates=none.csv: no such file")):
        assert run("dedup", "images=album", "model=thumbnail", words) == 2
        assert said in capsys.readouterr().err
    assert run("index", "remove", "index=ix", "images=album/2023") == 0
    capsys.readouterr()
    assert run("search", "index=ix", "images=nowhere") == 2
    assert "rdcd: no folder nowhere: expected a folder of pictures" in capsys.readouterr().err
    assert run("search", "index=ix", "images=copies", "precision=0.99", quick) == 2
    assert "precision=0.99: no calibration for codec 'Flat'" in capsys.readouterr().err
    assert run("index") == 0
    assert "\n  index remove    Take pictures out of an index" in capsys.readouterr().out
