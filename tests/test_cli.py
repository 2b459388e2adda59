"""The command line: help, refusals, and what a run leaves behind."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from config_files import COMMANDS, CONFIGS, leaves, tree
from hydra.core.global_hydra import GlobalHydra

from rdcd import cli, provenance
from rdcd.retrieval.descriptors import Descriptors, write_descriptors
from rdcd.yamls import spelled

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, and this process as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rdcd"])
    monkeypatch.setattr(provenance, "_run", {"command": None, "config": None})
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    yield
    GlobalHydra.instance().clear()


def run(*words: str) -> int:
    """Exit code of `rdcd WORDS`, in this process."""
    try:
        return cli.main(list(words))
    except SystemExit as stop:
        return stop.code


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PY": sys.executable} | environment)


def test_help_lists_every_command_with_its_sentence(capsys) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert run(*words) == 0
        said = capsys.readouterr().out
        for command in COMMANDS:
            first = (CONFIGS / f"{command}.yaml").read_text(encoding="utf-8").splitlines()[0]
            assert re.match(r"# \S.{10,}\.$", first), f"{command}.yaml starts with no comment of one sentence"
            assert re.search(rf"^  {spelled(command)} +{re.escape(first[2:])}$", said, flags=re.M)


def test_commands_of_two_words(capsys) -> None:
    for words in (["bench"], ["bench", "--help"]):
        assert run(*words) == 0
        said = capsys.readouterr().out
        assert "usage: rdcd bench NAME" in said and "\n  bench step " in said and "train" not in said.split("\n", 1)[0]
    assert run("bench", "step", "--help") == 0
    assert "usage: rdcd bench step [key=value …]\n" in capsys.readouterr().out
    assert run("bench", "step", "blokc=3") == 2
    said = "no key 'blokc' in `rdcd bench step` (did you mean block?); `rdcd bench step --help`"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_lists_every_key_of_every_yaml(command: str, capsys) -> None:
    assert run(command, "--help") == 0
    said = capsys.readouterr().out
    wanted = [key for key in leaves(tree(CONFIGS / f"{command}.yaml"))]
    for slot, choice in cli.slots_of(command).items():
        assert re.search(rf"^{slot}={choice} +\(choices: ", said, flags=re.M)
        for path in (CONFIGS / slot).glob("*.yaml"):
            assert re.search(rf"\b{path.stem}\b", said), path
        if choice != "null":
            wanted += [f"{slot}.{key}" for key in leaves(tree(CONFIGS / slot / f"{choice}.yaml"))]
    assert wanted
    for key in wanted:
        assert re.search(rf"^  {re.escape(key)}=", said, flags=re.M), f"{key} is not in the help"


def test_help_has_the_keys_that_an_option_inherits(capsys) -> None:
    assert run("train", "--help") == 0
    said = capsys.readouterr().out
    inherited = list(leaves(tree(CONFIGS / "loss" / "rdcd.yaml")))
    assert len(inherited) > 10
    for key in inherited:
        assert len(re.findall(rf"^  loss\.{key}=\S+ +\w", said, flags=re.M)) == 1, key
    assert "loss.momentum=0.0 " in said  # the heir's value
    assert not re.search(r"=\s*$", said, flags=re.M)  # no headings of blocks


def test_help_is_cheap_and_survives_a_closed_pipe() -> None:
    code = ("import sys; from rdcd.cli import main; main(['--help']); main(['train', '--help']); "
            "print({'torch', 'numpy', 'PIL'} & set(sys.modules))")
    done = shell(f'"$PY" -c "{code}"')
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "set()", done.stderr
    for words in ("--help", "train --help"):
        done = shell(f'{{ "$PY" -m rdcd {words}; echo "code $?" >&2; }} | true')
        assert done.stderr == "code 0\n"


def test_version(capsys) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"rdcd \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(("words", "said"), [
    (["scor"], "no command 'scor': expected one of .*score.*did you mean score"),
    (["xyzzy"], "no command 'xyzzy': expected one of "),
    (["bench", "stpe"], r"no command 'bench stpe': expected one of bench .*\(did you mean bench step or"),
    (["score", "querry=a"], r"no key 'querry' in `rdcd score` \(did you mean query\?\); `rdcd score --help`"),
    (["score", "+zzz=1", "query=a", "reference=b", "ground_truth=c", "out=d"], "no key 'zzz' in `rdcd"),
    (["train", "student.dmi=64"], r"no key 'student.dmi' in `rdcd train` \(did you mean student.dim"),
    (["train", "trainer.optimization.learning_rate=1"], "no key 'trainer.optimization.learning_rate'"),
    (["train", "studnt=small"], r"no key 'studnt'.*did you mean student"),
    (["train", "loss=rdcdd"], r"no choice 'rdcdd' for loss: expected one of .*sscd.*\(did you mean rdcd\?\)"),
    (["train", "experiment=photo_rdcd"], r"no choice 'photo_rdcd' for experiment: .*did you mean photos_rdcd"),
    (["train", "loss.temprature=1"], r"no key 'loss.temprature'.*did you mean .*loss.temperature"),
    (["train", "student="], "no choice '' for student: expected one of "),
    (["train", "teacher=file"], "rdcd train needs teacher.path=…; `rdcd train --help`"),
    (["score", "k=5"], "rdcd score needs out=…, query=…, reference=…"),
    (["score", "k"], "cannot read k: .*expected key=value"),
    (["score", "codecs=[Flat,"], r"cannot read 'codecs=\[Flat,': .*expected key=value"),
    (["score", "k=5,10"], "Ambiguous value for argument 'k=5,10': a list is key=.*; --multirun"),
    (["train", "--multirun", "student.dmi=1,2"], "no key 'student.dmi'"),
    (["train", "-m", "loss=rdcd,rdcdd", "student.dmi=1"], "no key 'student.dmi'"),
    (["score", "-m", "k=5,10"], "rdcd score needs out=…, query=…, reference=…"),
])
def test_mistakes_are_said_in_one_line_without_a_trace(words: list[str], said: str, capsys) -> None:
    assert run(*words) == 2
    out, error = capsys.readouterr()
    assert re.match(f"rdcd: .*{said}", error), error
    assert len(error.splitlines()) == 1 and not out


def write_case(folder: Path) -> list[str]:
    """Descriptor files of a tiny benchmark, as keys of `rdcd score`."""
    rng = np.random.default_rng(0)
    references = rng.normal(size=(6, 4))
    for role, prefix, vectors in (("reference", "R", references), ("query", "Q", references[:4] + 0.01)):
        names = np.array([f"{prefix}{i}" for i in range(len(vectors))])
        write_descriptors(folder / f"{role}.h5", Descriptors(names, vectors))
    (folder / "truth.csv").write_text("Q0,R0\nQ1,R1\n")
    return [*(f"{role}={folder}/{role}.h5" for role in ("query", "reference")),
            f"ground_truth={folder}/truth.csv", "score_norms=[null]"]


def test_a_command_runs_and_records_itself(tmp_path: Path, capsys) -> None:
    assert run("score", *write_case(tmp_path), "out=a b", "k=3") == 0
    record = json.loads((tmp_path / "a b" / "metrics.json").read_text())
    text = json.dumps(record)
    assert "rdcd score query=" in text and "'out=a b' k=3" in text
    config = provenance.run_config()
    assert config["k"] == 3 and config["out"] == "a b" and config["codecs"] == ["Flat"]
    assert {path.name for path in tmp_path.iterdir()} == {"a b", "query.h5", "reference.h5", "truth.csv"}


def test_a_sweep_runs_every_value(tmp_path: Path) -> None:
    assert run("score", "--multirun", *write_case(tmp_path), "k=2,3", "out=k${k}") == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"k2", "k3", "query.h5", "reference.h5", "truth.csv"}  # no leftovers of Hydra's


def test_a_commands_own_refusal_exits_with_2(tmp_path: Path, capsys) -> None:
    case = write_case(tmp_path)
    (tmp_path / "truth.csv").unlink()
    assert run("score", *case, "out=out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rdcd: no ground truth file {tmp_path}/truth.csv")
    assert len(error.splitlines()) == 1
    assert run("train", "data.root=none", "run_dir=run") == 2
    assert "rdcd: no folder none: " in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (["codecs=3"], "codec 3: expected an index-factory string"),
    (["score_norms=3"], "score normalization 3 not understood"),
    (["query=null"], "query=None: expected a path"),
    (["reference=3"], "no descriptor file 3: expected"),
    (["out=null"], "out=None: expected a path"),
    (['codecs=["PCA0,Flat"]'], "a PCA to 0 dimensions")])
def test_values_of_a_wrong_kind_are_refused(tmp_path: Path, capsys, words: list[str], said: str) -> None:
    case = [word for word in write_case(tmp_path) if word.split("=")[0] != words[0].split("=")[0]]
    out = [] if words == ["out=null"] else ["out=out"]
    assert run("score", *case, *words, *out) == 2
    assert said in capsys.readouterr().err


def test_a_workers_refusal_is_said_without_its_trace(capsys) -> None:
    cli._fail("Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nrdcd.errors.UserError: no\n")
    assert capsys.readouterr().err == "rdcd: no\n"


def test_a_crash_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("rdcd.evaluation.score.read_ground_truth", crash)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("score", *write_case(tmp_path), "out=out")


def test_an_interruption_exits_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("rdcd.evaluation.score.read_ground_truth", interrupt)
    assert run("score", *write_case(tmp_path), "out=out") == 130
    assert capsys.readouterr().err == "\nrdcd: interrupted\n"


def test_composed_configuration_can_be_shown(capsys) -> None:
    assert run("score", "--cfg", "job", "query=a", "reference=b", "ground_truth=c", "out=d") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["query"] == "a" and shown["_target_"] == "rdcd.evaluation.score.score"


def test_console_of_an_ordinary_process(tmp_path: Path) -> None:
    case = " ".join(write_case(tmp_path))
    done = shell(f'"$PY" -m rdcd score {case} out=out && "$PY" -m rdcd score {case} out=out2 kk=3')
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "did you mean k" in done.stderr
    assert (tmp_path / "out" / "metrics.csv").is_file() and not (tmp_path / "out2").exists()


def test_help_of_a_choice_that_is_not_there(capsys) -> None:
    assert run("train", "experiment=rdcd_effb_64", "--help") == 2
    assert "no choice 'rdcd_effb_64' for experiment" in capsys.readouterr().err


def test_help_lists_the_keys_of_what_is_chosen(capsys) -> None:
    assert run("train", "teacher=sscd_disc_mixup", "loss=sscd", "--help") == 0
    said = capsys.readouterr().out
    assert "teacher.allow_torchscript=false" in said and "loss.mixup=0.0" in said and "loss.queue_size" not in said
    assert run("train", "experiment=rdcd_effb0_64", "--help") == 0
    assert "teacher.path=null" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["train", "loss.batch_negatives=no"], "loss.batch_negatives=no: expected true or false"),
    (["train", "student.zero_init_residual=off"], "student.zero_init_residual=off: expected true or false"),
    (["train", "teacher=sscd_disc_mixup", "teacher.allow_torchscript=yes"], "teacher.allow_torchscript=yes: expected"),
    (["train", "teacher=sscd_disc_mixup", "teacher.paht=x"],
     "no key 'teacher.paht' in `rdcd train teacher=sscd_disc_mixup` (did you mean teacher.path"),
    (["train", "trainer.channels_last=off"], "trainer.channels_last=off: expected true or false, or null")])
def test_switches_and_chosen_keys_are_checked(capsys, words: list[str], said: str) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [["train"], ["evaluate"], ["score"], ["train", "data=disc2021"],
                                   *(["train", f"experiment={path.stem}"] for path in
                                     sorted((CONFIGS / "experiment").glob("*.yaml")))], ids=" ".join)
def test_help_shows_the_keys_there_are_with_the_values_they_have(capsys, words: list[str]) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    assert run(*words, "--help") == 0
    shown = dict(re.findall(r"^  ([a-z][\w.]*)=(.*?)(?:  |$)", capsys.readouterr().out, flags=re.M))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose(words[0], overrides=words[1:]), resolve=False)
    for key, value in shown.items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert "${" in value or yaml.safe_load(value) == node, key
    assert len(shown) > 10 and not any(key.startswith("experiment") for key in shown)
