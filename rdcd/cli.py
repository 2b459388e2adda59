"""`rdcd COMMAND [key=value …]`: every command is one YAML that names a function and its arguments.

This is the only file that knows Hydra. Nothing heavy is imported before a command runs.
"""

import difflib
import errno
import hashlib
import itertools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import rdcd
from rdcd.errors import UserError
from rdcd.hints import parameters
from rdcd.yamls import GROUPS, choices, commands, config_dir, entries, option_entries, slots_of, spelled, switches

QUIET = ("hydra.output_subdir=null", "hydra.run.dir=.", "hydra.sweep.subdir=.",
         "hydra/job_logging=none", "hydra/hydra_logging=none")

TAKES_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i")  # Hydra's flags that a word follows
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
ITEM = re.compile(rf"\s*({QUOTED}|(?:\[[^\[\]]*\]|[^,\[\]])*?)\s*(,|\Z)", flags=re.S)  # of a list, and what ends it
SWEEP = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", flags=re.S)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code (0 done, 1 checks failed, 2 a mistake in the input)."""
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # names of files may be bytes that no text has
        getattr(stream, "reconfigure", lambda errors: None)(errors="backslashreplace")
    known = commands()
    if words and words[0] in GROUPS:
        if len(words) == 1 or words[1] in ("-h", "--help", "help"):
            return _say("\n".join([f"usage: rdcd {words[0]} NAME [key=value …]", "", *_described(known, words[0])]))
        words = [f"{words[0]}-{words[1]}", *words[2:]]
    if not words or words[0] in ("-h", "--help", "help"):
        lines = ["usage: rdcd COMMAND [key=value …]", "", *_described(known)]
        return _say("\n".join([*lines, "", "`rdcd COMMAND --help` lists its keys. Every key can be overridden: "
                               "`rdcd train student.dim=128`."]))
    if words[0] == "--version":
        return _say(f"rdcd {rdcd.__version__}")
    command, overrides = words[0], words[1:]
    if command not in known:
        typed = [spelled(name) for name in known]
        return _fail(f"no command {spelled(command)!r}: expected one of {', '.join(typed)}"
                     + _did_you_mean(spelled(command), typed) + "; `rdcd --help` describes them")
    try:
        if "-h" in overrides or "--help" in overrides:
            return _say(_help(command, known[command], overrides))
        return _run(command, overrides)
    except (UserError, OSError, RuntimeError) as error:
        if said := _for_the_user(error):
            return _fail(*said)
        raise
    except KeyboardInterrupt:
        if _first_to_say("interrupted"):
            print("\nrdcd: interrupted", file=sys.stderr)
        return 130


def _described(known: dict[str, str], group: str = "") -> list[str]:
    """Return a line for each command, of those that begin with `group`."""
    return [f"  {spelled(name):<16}{text}" for name, text in known.items() if spelled(name).startswith(group)]


def _run(command: str, overrides: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    flags, values = _split(overrides)
    resume = [word for word in values if word.startswith("resume=") and word not in ("resume=", "resume=null")]
    if "resume=auto" in resume and any(word.startswith("run_dir=") for word in values):
        resume = []  # this line begins the run and continues it
    if resume:  # the run's own configuration takes the other values, not this command's
        values, others = resume, [word for word in values if word not in resume]
    multirun = any(flag in ("-m", "--multirun") for flag in flags)
    configs = _compositions(command, values)
    typed, values = values, [_as_typed(word, configs, sweep=multirun) for word in values]
    _check(command, typed, values, multirun=multirun)

    def task(config: DictConfig) -> None:
        from rdcd import provenance

        words = [_retyped(word, configs) for word in HydraConfig.get().overrides.task] if multirun else typed
        try:
            if resume:
                words, config = [*words, *others], _resumed(config, others)
            _check_switches(config, resolve=True)  # of every run of a sweep
            line = shlex.join(["rdcd", *spelled(command).split(), *words])
            provenance.set_run(command=line, config=OmegaConf.to_container(config, resolve=True))
            hydra.utils.instantiate(config, _convert_="all")
        except (UserError, OSError, RuntimeError, hydra.errors.InstantiationException) as error:
            cause = error.__cause__ or error if isinstance(error, hydra.errors.InstantiationException) else error
            if isinstance(cause, TypeError) and (key := re.search(r"unexpected keyword argument '(\w+)'", str(cause))):
                place = re.search(r"full_key: (\S+)", str(error))
                raise SystemExit(_fail(f"{place[1] if place else 'a choice'} takes no key {key[1]!r}: an experiment "
                                       f"sets it for another choice; leave out either")) from None
            if resume and re.search("required keyword-only argument|Error (locating|loading)", f"{error} {cause}"):
                raise SystemExit(_fail(f"the config.yaml of {config.resume} is damaged ({cause}): start the run "
                                       f"again, or copy the file from another of the same settings")) from None
            if said := _for_the_user(cause):
                raise SystemExit(_fail(*said)) from None
            raise cause from None

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # our messages are short; a real crash shows its trace
    with tempfile.TemporaryDirectory() as scratch:  # Hydra writes a multirun.yaml, unasked
        sys.argv = [f"rdcd {spelled(command)}", *values, *QUIET, f"hydra.sweep.dir='{scratch}'", *flags]
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    return 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's flags, with their values, from overrides."""
    flags, values = [], []
    for before, word in zip(["", *words], words):
        (flags if word.startswith("-") or before in TAKES_VALUE else values).append(word)
    return flags, values


def _compositions(command: str, words: list[str]) -> list[dict]:
    """Return the configurations, as written, of the slots' choices that are among `words`: several in a sweep."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    chosen = []
    for slot, _, value in (word.partition("=") for word in words):
        if slot in slots_of(command):
            known = [choice for choice in re.findall(r"[\w-]+", value) if choice in choices(slot)]
            chosen += [[f"{slot}={choice}" for choice in known]] if known else []
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return [OmegaConf.to_container(compose(command, overrides=list(these)), resolve=False)
                for these in itertools.product(*chosen)]


def _kinds(config: dict, key: str) -> frozenset[str]:
    """Return the types that a key's function takes for it, as `rdcd.hints` writes them; none: it is not known."""
    *blocks, name = key.lstrip("+").split(".")
    for block in blocks:
        config = config.get(block)
        if not isinstance(config, dict):
            return frozenset()
    return parameters(config["_target_"]).get(name, frozenset()) if "_target_" in config else frozenset()


def _as_typed(word: str, configs: list[dict], *, sweep: bool) -> str:
    """Quote what Hydra's grammar would refuse or convert, `images=2019 (Rome)`, of a key that takes text.

    Not touched: `null`, true and false where the key takes them, a value in quotes, and `${key}`. A list is one where
    the key takes lists; in a sweep a comma separates values.

    Args:
        word: as typed.
        configs: see `_compositions`.
    """
    key, equals, value = word.partition("=")
    kinds = frozenset().union(*(_kinds(config, key) for config in configs))
    if not equals or sweep and SWEEP.fullmatch(value):
        return word
    values = _items(value) if sweep else None
    return f"{key}={','.join(_as_text(item, kinds) for item in ([value] if values is None else values))}"


def _as_text(value: str, kinds: frozenset[str]) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    items = _items(value[1:-1]) if value[:1] == "[" and value[-1:] == "]" else None
    inner = frozenset(kind[1:] for kind in kinds if kind[0] == "[")
    if items is not None and inner:
        return f"[{','.join(_as_text(item, inner) for item in items)}]"
    others = ("null", "true", "false") if "bool" in kinds else ("null",)
    if not kinds & {"str", "Path"} or kinds & {"int", "float"} or value in others or re.fullmatch(QUOTED, value, re.S):
        return value
    return QuotedString(value, Quote.single).with_quotes()


def _items(text: str) -> list[str] | None:
    """Split at the commas outside quotes and brackets; None: a bracket is open."""
    items, place, end = [], 0, ","
    while text and end:
        found = ITEM.match(text, place)
        if found is None:
            return None
        items, place, end = [*items, found[1]], found.end(), found[2]
    return items


def _retyped(word: str, configs: list[dict]) -> str:
    """Return a word of one run of a sweep as it would be typed for that run alone."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    plain = f"{word.partition('=')[0]}={OverridesParser.create().parse_override(word).value()}"
    return plain if _as_typed(plain, configs, sweep=False) == word else word


def _check(command: str, typed: list[str], overrides: list[str], *, multirun: bool) -> None:
    """Compose once to turn Hydra's refusals into one clear message; of a sweep, its first value.

    Args:
        typed, overrides: the words as the user wrote them, and as Hydra gets them.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    refused = None
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            if multirun:
                overrides = [f"{o.get_key_element()}={next(o.sweep_string_iterator())}" if o.is_discrete_sweep()
                             else o.input_line for o in OverridesParser.create().parse_overrides(overrides)
                             if o.value_type is not ValueType.GLOB_CHOICE_SWEEP]
            config = compose(command, overrides=overrides, return_hydra_config=False)
            missing = sorted(OmegaConf.missing_keys(config))  # looks up what ${key} stands for, too
        except (HydraException, OmegaConfBaseException) as error:
            refused = error
    if refused is not None:  # explained outside: the explanation composes, too
        raise UserError(_explain(command, str(refused), typed))
    known = {key.split(".")[0] for key, _, _ in entries(config_dir() / f"{command}.yaml")}
    known |= {*slots_of(command), "_target_"}
    if unknown := [str(key) for key in config if key not in known]:  # `+key=value` passes struct mode
        raise UserError(_no_key(command, unknown[0], typed))
    _check_switches(config)
    if missing:
        raise UserError(f"rdcd {spelled(command)} needs {', '.join(f'{key}=…' for key in missing)}; "
                        f"`rdcd {spelled(command)} --help` says what they are")


def _explain(command: str, message: str, overrides: list[str]) -> str:
    first = message.strip().split("\n")[0]
    if wrong := re.search(r"Could not override '([^']+)'", message):
        return _no_key(command, wrong.group(1), overrides)
    if wrong := re.search(r"Could not find '([^']+)'", message):
        group, _, choice = wrong.group(1).rpartition("/")
        return (f"no choice {choice!r} for {group}: expected one of "
                f"{', '.join(choices(group))}{_did_you_mean(choice, choices(group))}")
    if first.startswith("Interpolation"):
        return f"{first}; ${{key}} in a value stands for that of another key"
    if first.startswith("Ambiguous value"):
        return f"{first}: a list is key=[value1,value2]; --multirun runs every value in turn"
    for word in overrides:  # of a key that is not there nobody knows that it takes text
        key, given, _ = word.partition("=")
        if given and re.fullmatch(r"\w+(\.\w+)*", key) and key not in {*_keys(command, overrides), *slots_of(command)}:
            return _no_key(command, key, overrides)
    return f"cannot read {shlex.join(overrides)}: {first}; expected key=value"


def _no_key(command: str, key: str, overrides: list[str]) -> str:
    chosen = "".join(f" {slot}={choice}" for slot, choice in slots_of(command, overrides).items()
                     if choice != slots_of(command)[slot])
    line = f"rdcd {spelled(command)}{chosen}"
    return (f"no key {key!r} in `{line}`{_did_you_mean(key, _keys(command, overrides))}; `{line} --help` lists all "
            f"keys")


def _check_switches(config, *, resolve: bool = False) -> None:
    """Refuse words for true and false: Hydra takes `no` and `off` for text, which counts as true."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    def look(node: object, place: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in switches() and not isinstance(value, bool | None) and not str(value).startswith("${"):
                    raise UserError(f"{place}{key}={value}: expected true or false")
                look(value, f"{place}{key}.")

    try:
        look(OmegaConf.to_container(config, resolve=resolve), "")
    except OmegaConfBaseException as error:
        raise UserError(_explain("", str(error), [])) from None


def _resumed(config, words: list[str]):
    """Return the configuration of the run that `resume` names, with `words` on top, in Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from rdcd.training.launch import find_run

    run = find_run(config.resume)
    try:
        saved = OmegaConf.load(run / "config.yaml")
        if not isinstance(saved, DictConfig) or saved.get("_target_") != "rdcd.training.launch.train":
            raise ValueError("it holds no configuration of a training")
    except FileNotFoundError:
        raise UserError(f"resume={config.resume}: {run} has no config.yaml, so it was not begun by `rdcd train`; "
                        f"name a run folder, or latest") from None
    except (OSError, ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{run / 'config.yaml'} is damaged ({reason}): start the run again, or copy the file from "
                        f"another of the same settings") from None
    _say_what_was_left_unsaid(saved)
    OmegaConf.set_struct(saved, True)
    configs = [OmegaConf.to_container(saved)]
    try:
        overrides = OverridesParser.create().parse_overrides([_as_typed(word, configs, sweep=False) for word in words])
    except HydraException as error:
        raise UserError(_explain("train", str(error), words)) from None
    for word, override in zip(words, overrides):
        key = override.key_or_group
        if (config_dir() / key).is_dir():
            raise UserError(f"resume={config.resume} continues with the run's own configuration: {word} "
                            f"cannot change it; start a new run, or override single keys such as trainer.epochs=20")
        if override.is_delete() or override.is_add() or override.is_sweep_override():
            raise UserError(f"{word}: expected key=value; a run that is resumed takes new values for "
                            f"the keys it has, one each")
        try:
            OmegaConf.update(saved, key, override.value())
        except OmegaConfBaseException:
            raise UserError(f"no key {key!r} in {run / 'config.yaml'}, the configuration of the run that is "
                            f"resumed") from None
    OmegaConf.set_struct(saved, False)
    return OmegaConf.merge(saved, {"resume": str(run), "run_dir": str(run)})


def _say_what_was_left_unsaid(config) -> None:
    """Give the students of an older run's configuration the keys that it lacks, as they were then."""
    from omegaconf import DictConfig

    from rdcd.models.student import FORMER

    for node in (config.get("student"), (config.get("teacher") or {}).get("student")):
        if isinstance(node, DictConfig) and str(node.get("_target_", "")).endswith(".Student"):
            if "pool_first" not in node:
                node.update(FORMER | {key: node[key] for key in FORMER if key in node})


def _for_the_user(error: BaseException) -> tuple[str, int] | None:
    """Return what to say of an error that is the user's to mend, and the exit code; None: it is a bug of ours."""
    if isinstance(error, UserError):
        return str(error), error.code
    if isinstance(error, OSError) and (error.filename or error.errno in FULL):
        return (f"cannot read or write {error.filename or 'a file'}: {error.strerror}; look at the file, its folder, "
                f"the space there and your rights to them"), 2
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib, before Python 3.13
        return f"cannot read or write: {error}; look at where the links point", 2
    return None


def _say(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int = 2) -> int:
    if "in DataLoader worker process" in message:  # torch puts the worker's traceback before the message
        message = message.rpartition("UserError: ")[2]
    message = " ".join(filter(None, map(str.strip, message.splitlines())))  # libraries' reasons may be of several lines
    if _first_to_say(message):
        print(f"rdcd: {message}", file=sys.stderr)
    return code


def _first_to_say(message: str) -> bool:
    """Whether none of the processes that scripts/launch.py started has said this; it gives them a folder to tell by."""
    if folder := os.environ.get("RDCD_SAID"):
        try:
            Path(folder, hashlib.sha256(message.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # the folder has gone: better said twice than not at all
            pass
    return True


def _did_you_mean(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _composed(command: str, overrides: list[str] = ()) -> dict[str, object]:
    """Return dotted key → value, as written, of a command with the choices of slots that are among `overrides`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    chosen = [word for word in overrides if slots_of(command, [word]) != slots_of(command)]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose(command, overrides=chosen), resolve=False)

    def leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            elif not key.startswith("_") and "_here_" not in str(value):
                yield prefix + key, value

    return dict(leaves(config))


def _keys(command: str, overrides: list[str] = ()) -> list[str]:
    """Return every key of a command, slots and blocks included."""
    keys = dict.fromkeys([*slots_of(command), *(key for key, _, _ in entries(config_dir() / f"{command}.yaml"))])
    for key in _composed(command, overrides):
        parts = key.split(".")
        keys |= dict.fromkeys(".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return list(keys)


def _help(command: str, description: str, overrides: list[str]) -> str:
    for slot, _, choice in (word.partition("=") for word in overrides):
        if slot in slots_of(command) and choice not in (*choices(slot), "null"):
            raise UserError(f"no choice {choice!r} for {slot}: expected one of {', '.join(choices(slot))}"
                            f"{_did_you_mean(choice, choices(slot))}")
    slots, values = slots_of(command, overrides), _composed(command, overrides)
    comments = {key: comment for key, _, comment in entries(config_dir() / f"{command}.yaml")}
    for slot, choice in slots.items():
        known = option_entries(config_dir() / slot / f"{choice}.yaml")
        comments |= {f"{slot}.{key}": comment for key, _, comment in known}

    def rows(keys: Iterable[str]) -> list[str]:
        return [f"  {key + '=' + _shown(values[key]):<43}  {comments.get(key, '')}" for key in keys]

    lines = [f"usage: rdcd {spelled(command)} [key=value …]", "", description, "", "keys:"]
    lines += rows(key for key in values if key.partition(".")[0] not in slots)
    for slot, choice in slots.items():
        lines += ["", f"{slot}={choice}   (choices: {', '.join(choices(slot))})"]
        lines += rows(key for key in values if key.startswith(f"{slot}."))
    if slots:
        example = f"rdcd {spelled(command)} {next(iter(slots))}=NAME --help"
        lines += ["", f"Other choices have other keys: `{example}` lists them."]
    lines += ["", "--multirun runs every combination of comma-separated values, one after the other; "
              "--cfg job prints the configuration."]
    return "\n".join(lines)


def _shown(value: object) -> str:
    """Write a value as a YAML does."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))  # YAML takes 1e-06 for text
    return f'"{value}"' if isinstance(value, str) and set(value) & set(",[]{}") and "${" not in value else str(value)
