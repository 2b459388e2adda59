"""Every YAML of configs/ says what it does, composes, and is what the code behind it takes."""

import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from config_files import COMMANDS, CONFIGS, leaves, tree
from omegaconf import OmegaConf

from rdcd import cli, yamls
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher

YAMLS = sorted(CONFIGS.rglob("*.yaml"))
OPTIONS = [path for path in YAMLS if path.parent.parent == CONFIGS]
PUBLISHED = [path for path in YAMLS if path.parent.parent == CONFIGS / "fidelity"]  # of one choice of a slot each


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def compose(command: str, *overrides: str):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(command, overrides=list(overrides))


def target(dotted: str) -> Callable:
    module, _, attribute = dotted.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def everywhere(path: Path) -> bool:
    """Whether a YAML's keys are those of the whole command: an experiment."""
    return "@package _global_" in path.read_text(encoding="utf-8")


def inherits(path: Path) -> bool:
    """Whether a YAML changes some values of others, where its keys are explained."""
    return everywhere(path) or path.parent != CONFIGS and "defaults" in tree(path)


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_every_key_is_explained_in_its_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert any(re.match(r"# \S.{10,}", line) for line in lines[:2]), "say in the first line what it does"
    if inherits(path):
        return
    bare = []
    for line in lines:
        key = re.match(r"^ *(\w+): *(.*)$", line)
        if not key or key[1] in ("_target_", "_partial_", "defaults") or not key[2]:  # `key:` opens a block
            continue
        if not re.search(r"\s# \S", key[2]) and not re.fullmatch(r"\$\{[\w.]+\}", key[2]):
            bare.append(line)
    assert bare == []


@pytest.mark.parametrize("path", [path for path in (*OPTIONS, *PUBLISHED) if inherits(path)], ids=name)
def test_keys_of_an_heir_are_explained_elsewhere(path: Path) -> None:
    if everywhere(path):
        known = set(cli._keys("train"))
        for option in OPTIONS:
            known |= {f"{option.parent.name}.{key}" for key in leaves(tree(option))}
        known |= {key for key in leaves(tree(path)) if key.startswith("student.timm.")}  # options of another library
    else:
        known = {key for base in tree(path)["defaults"] for key in leaves(tree(path.parent / f"{base}.yaml"))}
    known |= {key.rpartition(".")[0] for key in known}  # a block may be replaced by null
    known |= {f"{block}.{key}" for block, values in tree(path).items() if isinstance(values, dict)
              and "_target_" in values for key in leaves(values)}  # a further one, explained here
    known |= {f"data.synthetic.{key}" for key in leaves(tree(CONFIGS / "make-benchmark.yaml"))}
    assert set(leaves(tree(path))) <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_of_a_command_are_its_functions_parameters(command: str) -> None:
    config = OmegaConf.to_container(compose(command), resolve=False)
    parameters = inspect.signature(target(config.pop("_target_"))).parameters
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert set(config) == set(parameters)


def check_targets(value: object, place: str) -> None:
    """Every `_target_` below `value` exists and takes the keys beside it, whether it is called or not."""
    if isinstance(value, dict):
        if "_target_" in value:
            keys = {key for key in value if not key.startswith("_")}
            known = set(inspect.signature(target(value["_target_"])).parameters)
            assert keys <= known, f"{place}: {value['_target_']} takes no {', '.join(keys - known)}"
        for key, inner in value.items():
            check_targets(inner, f"{place}.{key}")


def compose_with(option: Path, command: str, *overrides: str):
    """A command's configuration with an option, and something for every key that has no default."""
    overrides = (f"{option.parent.name}={option.stem}", *overrides)
    missing = OmegaConf.missing_keys(compose(command, *overrides))
    return compose(command, *overrides, *(f"{key}=something" for key in missing))


def using(option: Path) -> list[str]:
    """Commands that have the slot of an option."""
    return [command for command in COMMANDS if option.parent.name in cli.slots_of(command)]


@pytest.mark.parametrize("option", OPTIONS, ids=name)
def test_every_option_composes_and_its_targets_take_its_keys(option: Path) -> None:
    assert using(option), "no command has this slot"
    for command in using(option):
        check_targets(OmegaConf.to_container(compose_with(option, command), resolve=True), command)


@pytest.mark.parametrize("path", PUBLISHED, ids=name)
def test_what_belongs_to_a_choice_is_set_with_it_alone(path: Path) -> None:
    slot, choice = path.parent.name, path.stem.removeprefix("published_")
    assert choice in yamls.choices(slot)
    given = [f"{slot}={choice}", *(["student.trunk=test_efficientnet"] if slot == "loss" else [])]
    published, ours = (OmegaConf.to_container(compose("train", *given, *words)[slot])
                       for words in (["fidelity=published"], []))
    values = tree(path)[slot] if slot in tree(path) else tree(path.with_name(f"{tree(path)['defaults'][0]}.yaml"))[slot]
    assert published | values == published != ours
    key = next(iter(values))
    assert compose("train", *given, "fidelity=published", f"{slot}.{key}=7")[slot][key] == 7  # the user's word is last


@pytest.mark.parametrize("loss", [path.stem for path in sorted((CONFIGS / "loss").glob("*.yaml"))])
def test_every_loss_has_a_published_form(loss: str) -> None:
    form = "entropy_form" if loss == "sscd" else "hard_negative_form"
    assert compose("train", f"loss={loss}", "fidelity=published").loss[form] == "clamp"


def part(option: Path, *overrides: str):
    """The instantiated slot of an option, as its command gets it."""
    config = compose_with(option, using(option)[0], *overrides)
    return hydra.utils.instantiate(config, _convert_="all", _partial_=True).keywords.get(option.parent.name)


def options(slot: str) -> list[Path]:
    return [path for path in OPTIONS if path.parent.name == slot]


@pytest.mark.parametrize("option", OPTIONS, ids=name)
def test_every_option_instantiates(option: Path) -> None:
    made = part(option)
    if "_target_" in tree(option) and inspect.isclass(kind := target(tree(option)["_target_"])):
        assert (made.func if isinstance(made, partial) else type(made)) is kind


@pytest.mark.parametrize("option", options("student"), ids=name)
def test_every_student_can_be_made(option: Path) -> None:
    if option.stem == "none":
        assert part(option) is None
        return
    made = part(option)(kd_dim=24).eval()
    assert made.architecture["trunk"] == compose("train", f"student={option.stem}").student.trunk
    with torch.no_grad():
        found = made(torch.rand(1, 3, 64, 64))
    assert found.features.shape == (1, 24) and found.descriptors.shape == (1, made.dim)


@pytest.mark.parametrize("option", options("loss"), ids=name)
def test_every_loss_can_be_made_and_has_a_gradient(option: Path) -> None:
    small = ["loss.queue_size=8"] if "queue_size" in tree(option) else []
    student = Student(trunk="test_efficientnet", dim=4, kd_dim=6)
    objective = part(option, *small)(student, Teacher(Student(trunk="test_efficientnet", dim=None, kd_dim=6)))
    for _ in range(2):  # the second time with something in the queues
        outcome = objective(student, torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32), torch.arange(3))
        outcome.total.backward()
        outcome.remember()
    assert torch.isfinite(outcome.total) and student.fc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("option", options("augment"), ids=name)
def test_every_augmentation_follows_the_views_size(option: Path, picture) -> None:
    recipe = part(option, "data.size=20")
    assert recipe(picture(0), np.random.default_rng(0)).size == (20, 20)


@pytest.mark.parametrize("option", options("logger"), ids=name)
def test_every_logger_writes_under_the_folder_it_gets(option: Path, tmp_path: Path) -> None:
    for make in part(option).values():
        logger = make(save_dir=tmp_path / "logs")
        folder = logger.log_dir  # None: it keeps no files by itself
        logger.finalize("success")
        assert folder is None or Path(folder).is_relative_to(tmp_path / "logs")
    assert {path.name for path in tmp_path.iterdir()} <= {"logs"}
