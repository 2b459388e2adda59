"""Experiments and protocols carry the figures of the papers (docs/method.md §2–§5), written out here once more."""

import re

import pytest
import timm
from config_files import CONFIGS
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from rdcd.cli import main

RDCD = {  # experiment → trunk, dim, teacher, pretrained
    "rdcd_effb0_64": ("efficientnet_b0", 64, "sscd_disc_mixup", False),
    "rdcd_effb0_128": ("efficientnet_b0", 128, "sscd_disc_mixup", False),
    "rdcd_effb0_256": ("efficientnet_b0", 256, "sscd_disc_mixup", False),
    "rdcd_mobilenetv3_256": ("mobilenetv3_large_100", 256, "sscd_disc_mixup", False),
    "rdcd_fastvit_t12_256": ("fastvit_t12", 256, "sscd_disc_mixup", True),
    "rdcd_effb0_256_resnext101": ("efficientnet_b0", 256, "sscd_disc_large", False),
    "rdcd_effb0_256_dino_vitb8": ("efficientnet_b0", 256, "dino_vitb8", False),
}
NETWORK = {  # trunk → init, drop_rate, drop_path_rate, timm, zero_init_residual
    "efficientnet_b0": ("efficientnet", 0.2, 0.2, None, False),
    "mobilenetv3_large_100": ("mobilenetv3", 0.2, 0.0, {"bn_eps": 1e-3, "bn_momentum": 0.01}, False),
    "fastvit_t12": ("timm", 0.0, 0.0, None, False),
    "resnet50": ("sscd", 0.0, 0.0, None, True),
}
SSCD = {"sscd_effb0_512": ("efficientnet_b0", 10.0, False), "sscd_r50_512": ("resnet50", 30.0, True)}
PUBLISHED = [*RDCD, *SSCD, "dino_vitb16_1536"]


def composed(*words, command="train"):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(command, overrides=[*words, *(["data.root=x"] if command == "train" else [])])
    return OmegaConf.to_container(config, resolve=True)


def values(section, *keys):
    return tuple(section[key] for key in keys)


def check_common(config):
    student = config["student"]
    assert values(student, "init", "drop_rate", "drop_path_rate", "timm", "zero_init_residual") == NETWORK[
        student["trunk"]]
    assert values(student, "pool_first", "mean", "std") == (True, None, None)  # None: the trunk's own, which are
    own = timm.get_pretrained_cfg(student["trunk"])
    assert (own.mean, own.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert config["augment"] == {"_target_": "rdcd.augment.recipes.advanced", "size": 224, "path": "plain",
                                 "device": None}
    assert values(config["data"], "size", "test_size", "synthetic") == (224, 288, None)
    trainer = config["trainer"]
    assert values(trainer, "epochs", "precision", "sync_batchnorm", "shuffle_bn") == (100, "32-true", True, True)
    assert values(trainer["optimization"], "momentum", "weight_decay", "warmup_epochs", "clip") == (0.9, 1e-6, 5, None)
    assert config["protocol"]["name"] == "disc_dev_knn10" and config["baselines"] == []


@pytest.mark.parametrize("experiment", RDCD)
def test_rdcd(experiment):
    config = composed(f"experiment={experiment}")
    check_common(config)
    student, loss, trainer = config["student"], config["loss"], config["trainer"]
    assert (*values(student, "trunk", "dim"), config["teacher"]["name"], student["pretrained"]) == RDCD[experiment]
    gem_p = 4.0 if experiment.endswith("dino_vitb8") else 3.0  # the published code has one exponent for both networks
    assert values(student, "kd_dim", "gem_p") == (None, gem_p)  # kd_dim: the teacher's
    assert values(trainer["optimization"], "algorithm", "lr") == ("sgd", 1.0)
    batch = config["data"]["batch_size"]
    assert batch == 256 and 1_000_000 // batch * trainer["epochs"] == 390_600
    assert values(loss, "queue_size", "momentum", "temperature", "contrastive_weight", "hard_negative_weight",
                  "relational_weight", "student_temperature", "teacher_temperature", "hard_negative_epsilon",
                  "batch_negatives", "append_batch", "append_own", "hard_negative_form",
                  "teacher_train_mode") == (
        65_536, 0.99, 0.07, 1.0, 5.0, 1.0, 0.04, 0.04, 1e-3, False, False, False, "clamp", True)


@pytest.mark.parametrize("experiment", SSCD)
def test_sscd(experiment):
    config = composed(f"experiment={experiment}")
    check_common(config)
    student, loss = config["student"], config["loss"]
    assert (student["trunk"], loss["entropy_weight"], student["zero_init_residual"]) == SSCD[experiment]
    assert values(student, "dim", "kd_dim", "pretrained", "gem_p") == (None, 512, False, 3.0)
    assert values(loss, "temperature", "mixup", "mixup_alpha", "cutmix_alpha", "switch_probability") == (
        0.05, 0.05, 2.0, 2.0, 0.5)
    assert values(loss, "entropy_form", "entropy_epsilon") == ("clamp", 5e-7)  # 1e-6 of the squared distance
    assert values(config["trainer"]["optimization"], "algorithm", "lr") == ("lars", 0.3)
    assert config["data"]["batch_size"] == 4096


def test_dino_is_measured_alone():
    config = composed("experiment=dino_vitb16_1536")
    assert config["teacher"]["name"] == "dino_vitb16" and config["student"]["_target_"].endswith("no_student")
    assert config["protocol"]["name"] == "disc_dev_knn10" and config["baselines"] == []


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_a_users_word_is_last(experiment):
    assert composed(f"experiment={experiment}", "augment.path=fast")["augment"]["path"] == "fast"
    student = composed("experiment=rdcd_effb0_64", "student.drop_rate=0")["student"]
    assert values(student, "drop_rate", "drop_path_rate") == (0, 0.2)


def test_what_is_published_of_one_student_is_not_set_for_another():
    student = composed("experiment=rdcd_effb0_64", "student=fastvit_t12")["student"]
    assert values(student, "trunk", "init", "drop_rate", "drop_path_rate", "pretrained") == (
        "fastvit_t12", "timm", 0.0, 0.0, True)
    with_ours = composed("experiment=rdcd_effb0_64", "fidelity=ours")
    assert with_ours["loss"]["hard_negative_form"] == "tangent" and with_ours["augment"]["path"] == "fast"
    assert values(with_ours["student"], "init", "drop_rate", "dim") == ("timm", 0.0, 64)


@pytest.mark.parametrize(("ablation", "changed"), [
    ("rdcd_no_relational", {"relational_weight": 0.0}), ("rdcd_no_hard_negative", {"hard_negative_weight": 0.0}),
    ("rdcd_no_contrastive", {"contrastive_weight": 0.0}), ("rdcd_clamp", {"hard_negative_form": "clamp"}),
    ("rdcd_append_batch", {"append_batch": True}), ("rdcd_append_own", {"append_own": True})])
def test_an_ablation_changes_one_thing(ablation, changed):
    whole, without = composed("loss=rdcd")["loss"], composed(f"loss={ablation}")["loss"]
    assert {key: value for key, value in without.items() if whole[key] != value} == changed


@pytest.mark.parametrize(("name", "size", "resize", "candidates", "k", "layout", "split"), [
    ("disc_dev", 288, "square", "global", 10, "disc", "dev"),
    ("disc_dev_knn10", 288, "square", "per_query", 10, "disc", "dev"),
    ("disc_final", 288, "square", "global", 10, "disc", "final"),
    ("ndec", 224, "square", "per_query", 10, "ndec", "dev"),
    ("cd10k", 288, "short", "per_query", 100, "cd10k", "dev"),
    ("pairs", None, None, "per_query", 10, "pairs", "dev"),
    ("disc", None, None, "per_query", 10, "disc", "dev")])
def test_protocols(name, size, resize, candidates, k, layout, split):
    protocol = composed(f"protocol={name}", command="evaluate")["protocol"]
    assert values(protocol, "name", "size", "resize", "candidates", "k", "layout", "split") == (
        name, size, resize, candidates, k, layout, split)
    assert protocol["score_norms"] == ([None] if name == "cd10k" else [None, "1.0[0,2]"])
    assert protocol["codecs"][0] == "Flat" and protocol["codecs"][-1] == "PCAW{d},L2norm,Flat"
    assert protocol["bootstrap"] == 1000


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_file_begins_with_its_command_and_its_hardware(experiment):
    head = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    assert re.search(rf"#   (sh train\.sh|torchrun .*-m rdcd train)[^\n]*(\\\n#  [^\n]*)?experiment={experiment} "
                     rf"data\.root=DISC2021", head, flags=re.S)
    assert re.search(r"# (One|Two|Four) .*GPU", head)


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_without_data_nothing_is_drawn_in_its_place(experiment, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", f"experiment={experiment}", "trainer.accelerator=cpu"])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and "data.root is not set: give data.root=DIR" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
