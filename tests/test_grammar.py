"""Values of the command line arrive as they are typed, in every key of every command that takes text."""

import importlib
import inspect
import json
import shlex
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from config_files import COMMANDS, CONFIGS, tree
from omegaconf import OmegaConf
from test_cli import process, run, write_case  # noqa: F401 (a fixture for every test)

from rdcd import cli, hints, provenance
from rdcd.yamls import choices, slots_of

ODD = ["Café", "Cafe\u0301", "写真", "📷", "caf\udce9", "2019 (Rome)", "a=b", "epoch=3.ckpt", "0.10", "2024", "007",
       "1e3", "1_000", "nan", "inf", "-1", "Null", "~", "none", "True", "yes", "~/dir", "C:\\x", "C:\\dir\\", "a,b",
       "a, b", ",", "[a]", "[a,b", "a]", "{x: y}", "{", "a$b", "$HOME", "it's", 'say "hi"', "'", "'a' and 'b'", " lead",
       "trail ", "50%", "%20", "a:b", "#x", "!x", "@x", "a\nb", "a\tb", "\\", "a\\\\'b", "choice(a,b)", "a*?",
       "range(3)", "+", "a|b", "<a>&;`b`", "", "-"]


def composed(command: str, *words: str) -> dict:
    """A command's configuration, resolved, of words as they are typed."""
    configs = cli._compositions(command, list(words))
    from hydra import compose, initialize_config_dir
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(command, overrides=[cli._as_typed(word, configs, sweep=False) for word in words])
    return OmegaConf.to_container(config, resolve=False)


def targets(value: object, prefix: str = "") -> Iterator[tuple[str, str, dict]]:
    """(dotted place, `_target_`, keys) of every block that something is made of."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield prefix, value["_target_"], {key: inner for key, inner in value.items() if not key.startswith("_")}
        for key, inner in value.items():
            yield from targets(inner, f"{prefix}{key}.")


def runtime_types(target: Callable, name: str) -> set[str]:
    """What a parameter takes, as typing says: the oracle of `rdcd.hints`."""
    def names(hint: object) -> set[str]:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (list, tuple) or getattr(origin, "__name__", "") in ("Sequence", "Iterable"):
            return {f"[{kind}" for part in inner for kind in names(part)}
        if inner and "Union" in str(origin):
            return set().union(*map(names, inner))
        return {"None" if hint is type(None) else getattr(hint, "__name__", str(hint))}

    return names(typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)[name])


def variants(command: str) -> list[list[str]]:
    """Words that choose each option of each slot of a command once."""
    return [[], *([f"{slot}={choice}"] for slot in slots_of(command) for choice in choices(slot))]


def text_keys() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(command, key, words that choose the options it needs) of every key that takes text."""
    for command in COMMANDS:
        seen = set()
        for words in variants(command):
            for place, target, keys in targets(composed(command, *words)):
                module, _, name = target.rpartition(".")
                function = getattr(importlib.import_module(module), name)
                for key in keys:
                    if place + key not in seen and {"str", "Path"} & runtime_types(function, key):
                        seen.add(place + key)
                        yield command, place + key, tuple(words)


def test_types_read_as_text_are_those_of_the_running_code() -> None:
    found = {}
    for path in CONFIGS.rglob("*.yaml"):
        for place, target, keys in targets(tree(path)):
            module, _, name = target.rpartition(".")
            function = getattr(importlib.import_module(module), name)
            for key in inspect.signature(inspect.unwrap(function)).parameters if target.startswith("rdcd.") else keys:
                real = runtime_types(function, key)
                said = hints.parameters(target)[key]
                plain = {*hints.SIMPLE, *(f"[{kind}" for kind in hints.SIMPLE)}
                assert said & plain == real & plain, f"{target} {key}: {said} {real}"
                found[target, key] = said
    assert len(found) > 150
    assert found["rdcd.collection.dedup.dedup", "images"] == {"str", "Path", "[str", "[Path", "None"}
    assert found["rdcd.models.student.Student", "pretrained"] == {"bool", "str", "Path"}
    assert found["pytorch_lightning.loggers.CSVLogger", "name"] == {"str", "None"}


def test_every_text_key_of_every_command_takes_every_value_as_it_is_typed() -> None:
    keys = list(text_keys())
    known = {(command, key) for command, key, _ in keys}
    assert {("score", "query"), ("dedup", "images"), ("train", "teacher.path"), ("train", "student.pretrained"),
            ("calibrate", "data.root"), ("train", "data.synthetic.out"), ("train", "logger.csv.name"),
            ("train", "name"), ("evaluate", "protocol.name"), ("bench-score", "keep"), ("doctor", "folder")} <= known
    assert not {("score", "k"), ("dedup", "threshold"), ("score", "codecs"), ("train", "student.gem_p")} & known
    from hydra.core.override_parser.overrides_parser import OverridesParser
    parser, configs = OverridesParser.create(), {}
    for command, key, words in keys:
        if (command, words) not in configs:
            configs[command, words] = cli._compositions(command, list(words))
        for value in ODD:
            override = parser.parse_override(cli._as_typed(f"{key}={value}", configs[command, words], sweep=False))
            got = override.value()
            assert got == value or isinstance(got, list), f"{command} {key}: {value!r} arrived as {got!r}"
            assert not isinstance(got, list) or value == "[a]" and got == ["a"]


@pytest.mark.parametrize("value", ODD)
def test_a_value_arrives_in_the_configuration(value: str) -> None:
    assert composed("score", f"query={value}")["query"] == value
    assert composed("train", f"name={value}", f"data.root={value}", "teacher=file", f"teacher.path={value}")[
        "teacher"]["path"] == value
    assert composed("train", f"+data.synthetic.photos={value}")["data"]["synthetic"]["photos"] == value


@pytest.mark.parametrize(("word", "wanted"), [
    ("images=null", None), ("images='null'", "null"), ("images='a,b'", "a,b"), ('images="a,b"', "a,b"),
    ('images="it\'s"', "it's"), ("images=[a,b]", ["a", "b"]), ("images=[Café, 2019 (Rome),0.10, a=b]",
                                                             ["Café", "2019 (Rome)", "0.10", "a=b"]),
    ("images=['a,b',\"c, d\",null]", ["a,b", "c, d", None]), ("images=[]", []), ("images='[a,b]'", "[a,b]"),
    ("score_norm=1.0[0,2]", "1.0[0,2]"), ("score_norm='1.0[0,2]'", "1.0[0,2]"), ("k=5", 5), ("threshold=0.50", 0.5),
    ("device=null", None), ("allow_torchscript=true", True)])
def test_what_is_no_text_stays_what_it_was(word: str, wanted: object) -> None:
    got = composed("dedup", word)[word.partition("=")[0]]
    assert got == wanted and type(got) is type(wanted)


def test_lists_hold_what_is_typed() -> None:
    assert composed("score", "score_norms=[null,1.0[0,2]]")["score_norms"] == [None, "1.0[0,2]"]
    assert composed("score", "codecs=[Flat,'PCAW8,L2norm,Flat',\"IVF4,Flat;nprobe=2\"]")["codecs"] == [
        "Flat", "PCAW8,L2norm,Flat", "IVF4,Flat;nprobe=2"]
    assert composed("bench-data", "sides=[500,1024]")["sides"] == [500, 1024]
    for word, wanted in (("false", False), ("true", True), ("0.10", "0.10"), ("weights (1).pth", "weights (1).pth")):
        assert composed("train", f"student.pretrained={word}")["student"]["pretrained"] == wanted


def test_a_command_records_the_users_words_and_they_give_the_same_again(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    for out in ("Café (2019)", "a=b", "0.10", "a,b", "it's", "C:\\x\\", "[a]", "caf\udce9"):
        assert run("score", *case, f"out={out}") == 0
        line = json.loads((tmp_path / out / "metrics.json").read_text())["provenance"]["command"]
        assert shlex.split(line) == ["rdcd", "score", *case, f"out={out}"]
        assert provenance.run_config()["out"] == out
        (tmp_path / out / "metrics.json").unlink()
        assert run(*shlex.split(line)[1:]) == 0 and (tmp_path / out / "metrics.json").is_file()


def test_a_sweep_takes_its_values_as_typed_and_records_each_run(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    assert run("score", "-m", *case, "k=2,3", "out=Café ${k},0.10-${k},'a,b-${k}',it's ${k}") == 0
    for k in (2, 3):
        for out in (f"Café {k}", f"0.10-{k}", f"a,b-{k}", f"it's {k}"):
            record = json.loads((tmp_path / out / "metrics.json").read_text())["provenance"]
            assert record["config"]["out"] == out and record["config"]["k"] == k
            words = shlex.split(record["command"])
            assert words[:2] == ["rdcd", "score"] and f"k={k}" in words and composed("score", *words[2:])["k"] == k
            (tmp_path / out / "metrics.json").unlink()
            assert run(*words[1:]) == 0 and (tmp_path / out / "metrics.json").is_file()
    assert run("score", "-m", *case, "out=choice(c1,c2)") == 0 and (tmp_path / "c2" / "metrics.json").is_file()


@pytest.mark.parametrize(("words", "said"), [
    (["score", "query=Café", "reference=2019 (Rome)", "out=o", "ground_truth=a=b"], "2019 (Rome)|Café|a=b"),
    (["dedup", "images=2024", "model=thumbnail"], "2024"), (["dedup", "images=a,b", "model=thumbnail"], "a,b"),
    (["index", "info", "index=1e3"], "1e3"), (["check-data", "root=0.10"], "0.10"),
    (["evaluate", "checkpoint=epoch=3.ckpt"], "epoch=3.ckpt"), (["train", "resume=a=b"], "a=b"),
    (["export", "checkpoint=C:\\x", "out=a.safetensors"], "C:\\x"), (["train", "data.root=~~ (x)"], "~~ (x)")])
def test_a_file_that_is_not_there_is_named_as_typed(words: list[str], said: str, capsys) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("rdcd: ") and error.count("\n") == 1 and any(part in error for part in said.split("|"))


@pytest.mark.parametrize("value", ["a${nokey}", "a${", "${a b}"])
def test_a_reference_to_no_key_is_one_line(tmp_path: Path, value: str, capsys) -> None:
    assert run("score", *write_case(tmp_path), f"out={value}") == 2
    error = capsys.readouterr().err
    assert error.startswith("rdcd: ") and error.count("\n") == 1


def test_a_resumed_run_takes_its_values_as_typed(tmp_path: Path) -> None:
    data = {"_target_": "rdcd.training.datamodule.DataSettings", "root": None}
    OmegaConf.save({"_target_": "rdcd.training.launch.train", "seed": 1, "data": data}, tmp_path / "config.yaml")
    (tmp_path / "checkpoints").mkdir()
    for value in ODD:
        config = cli._resumed(OmegaConf.create({"resume": str(tmp_path)}), [f"data.root={value}", "seed=3"])
        assert config.data.root == value and config.seed == 3


@pytest.mark.parametrize("value", ["a=b", "2019 (Rome)", "Café"])
def test_a_key_that_is_not_there_is_named_whatever_its_value(value: str, capsys) -> None:
    assert run("train", f"outt={value}") == 2
    assert "no key 'outt' in `rdcd train`" in capsys.readouterr().err
