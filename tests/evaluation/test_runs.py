"""Curves of a run, as its logs hold them."""

import csv
import os

from rdcd.evaluation.runs import read_curves


def write(folder, *rows):
    folder.mkdir(parents=True)
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        table.writeheader()
        table.writerows(rows)


def test_every_kind_of_number_has_a_panel_and_losses_one_alone(tmp_path):
    names = ["loss", "contrastive", "relational", "lr", "gradient_norm", "queue_age", "images_per_s", "data_wait",
             "effective_rank_h", "effective_rank_z",
             *(f"{kind}_p{p}" for kind in ("positives", "hardest_negatives") for p in (10, 50, 90))]
    write(tmp_path / "csv" / "version_0", {"step": 9, "epoch": 0} | {f"train/{name}": 1.5 for name in names},
          {"step": 19, "epoch": 0, "train/loss": 0.5}, {"step": 19, "epoch": 0, "val/uAP_SN": 0.25})
    panels = read_curves(tmp_path)
    assert {title: sorted(series) for title, series in panels.items()} == {
        "loss terms": ["contrastive", "loss", "relational"], "learning rate": ["lr"],
        "gradient norm": ["gradient_norm"], "age of the queue, steps": ["queue_age"], "images/s": ["images_per_s"],
        "share of time waiting for data": ["data_wait"],
        "effective rank": ["effective_rank_h", "effective_rank_z"],
        "similarity of positives, over temperature": ["positives_p10", "positives_p50", "positives_p90"],
        "similarity of hardest negatives, over temperature":
            ["hardest_negatives_p10", "hardest_negatives_p50", "hardest_negatives_p90"],
        "validation": ["uAP_SN"]}
    assert panels["loss terms"]["loss"] == ([9, 19], [1.5, 0.5]) and panels["validation"]["uAP_SN"] == ([19], [0.25])


def test_what_a_resumed_run_did_again_replaces_what_it_had_done(tmp_path):
    write(tmp_path / "csv" / "version_0", *({"step": step, "train/loss": 1.0} for step in (0, 1, 2)))
    write(tmp_path / "csv" / "version_1", *({"step": step, "train/loss": 2.0} for step in (2, 3)))
    for number, name in enumerate(("version_0", "version_1")):
        os.utime(tmp_path / "csv" / name / "metrics.csv", (number, number))
    assert read_curves(tmp_path)["loss terms"]["loss"] == ([0, 1, 2, 3], [1, 1, 2, 2])


def test_a_run_that_logged_nothing_has_no_curves(tmp_path):
    assert read_curves(tmp_path / "logs") == {}
