"""The command line: finds the verbs, composes their configs with Hydra, and turns errors into answers.

A verb is a file of this folder with a function `run`. If `configs/` holds a file of the same name, its arguments are Hydra
overrides and `run` gets the composed config; otherwise `run` gets the plain arguments. Nothing heavy is imported here, so
that help and mistyped overrides answer at once.
"""

import ast
import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from longseq.errors import ConfigError, LongseqError
from longseq.pipelines.demo import apply_demo
from longseq.pipelines.run_folder import resume_from
from longseq.version import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

PIPELINES = Path(__file__).parent
CONFIGS = PIPELINES.parent / "configs"
# The exit code of what Ctrl-C ended.
INTERRUPTED = 130
GROUP_OVERRIDE = re.compile(r"^[+~]{0,2}(?P<key>[\w/.@\-]+)(=(?P<value>.*))?$", re.DOTALL)


def main(argv: list[str] | None = None) -> NoReturn:
    """The console script's entry point; exits 0, or 2 for a mistake in the command, 1 for a failed run, 130 for Ctrl-C."""
    args = sys.argv[1:] if argv is None else argv
    try:
        sys.exit(dispatch(args))
    except LongseqError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has gone; not an error. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def fail(message: str, code: int) -> NoReturn:
    """Prints the answer on stderr, without a traceback, and exits."""
    print(f"longseq: {message}", file=sys.stderr)
    sys.exit(code)


def dispatch(args: list[str]) -> int:
    """Runs one command and returns its exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"longseq {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in verbs():
        raise ConfigError(f"there is no verb {verb!r}{nearest_of(verb, verbs(), 'Verbs')}")
    if any(arg in ("-h", "--help") for arg in rest):
        print(verb_help(verb))
        return 0
    if not (CONFIGS / f"{verb}.yaml").is_file():
        return int(load_verb(verb).run(rest) or 0)
    return run_with_config(verb, rest)


def verbs() -> dict[str, str]:
    """Every verb with its one-line description."""
    found = {}
    for path in sorted(PIPELINES.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if re.search(r"^def run\(", source, re.MULTILINE):
            found[path.stem] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0].rstrip(".")
    return found


def load_verb(verb: str) -> ModuleType:
    """Imports a verb's file; this is where torch and Lightning come in."""
    from importlib import import_module

    return import_module(f"longseq.pipelines.{verb}")


def groups(folder: Path = CONFIGS) -> dict[str, list[str]]:
    """Config groups with their choices, nested ones as `dna/gue_tf0`."""
    found = {}
    for group in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
        choices = (path.relative_to(group).with_suffix("") for path in group.rglob("*.yaml"))
        found[group.name] = sorted(str(choice) for choice in choices if not choice.name.startswith("_"))
    return found


def overview() -> str:
    """What `longseq --help` prints."""
    lines = ["longseq: train, fine-tune and export long-sequence backbones on your own data", ""]
    lines += ["usage: longseq <verb> [key=value ...]", "", "verbs:"]
    lines += [f"  {verb:<10} {summary}" for verb, summary in verbs().items()]
    lines += ["", "examples:"]
    lines += [
        "  longseq fit domain=dna backbone=hyena",
        "  longseq fit domain=dna data.train=train.csv data.val=val.csv data.test=test.csv",
        "  longseq fit -m seed=1,2,3",
        "  longseq fit --help        the choices of every group",
    ]
    return "\n".join(lines)


def verb_help(verb: str) -> str:
    """What `longseq <verb> --help` prints: the verb's description and the choices of every group it uses."""
    source = (PIPELINES / f"{verb}.py").read_text(encoding="utf-8")
    lines = [ast.get_docstring(ast.parse(source)) or "", ""]
    config = CONFIGS / f"{verb}.yaml"
    if not config.is_file():
        return "\n".join(lines).rstrip()
    text = config.read_text(encoding="utf-8")
    used = [group for group in groups() if re.search(rf"^\s*-\s*(optional )?{group}:", text, re.MULTILINE)]
    lines += [f"usage: longseq {verb} [group=choice ...] [key=value ...] [-m key=a,b,c] [--cfg job]", "", "groups:"]
    lines += [f"  {group:<10} {', '.join(groups()[group]) or '-'}" for group in used]
    lines += ["", f"--cfg job prints the composed config; every key of it is an option. Shipped: configs/{verb}.yaml"]
    return "\n".join(lines)


def nearest(word: str, known: Any) -> str:
    """`; did you mean ...?` for the nearest known words, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest_of(word: str, known: Iterable[str], what: str) -> str:
    """The end of a sentence on an unknown word: the nearest known ones, and after `what` all of them."""
    known = list(known)
    return f"{nearest(word, known) or '.'} {what}: {', '.join(known)}"


# -- Hydra


def run_with_config(verb: str, args: list[str]) -> int:
    """Composes the verb's config from the overrides and runs it, once or for every point of a sweep."""
    from hydra._internal.utils import _run_hydra, get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    parser = get_args_parser()
    # Options of Hydra's may stand between overrides.
    parsed = parser.parse_intermixed_args(flags_as_overrides(args, set(parser._option_string_actions)))
    parsed.overrides = check_overrides(verb, parsed.overrides)
    code = 0
    failure: BaseException | None = None

    def job(cfg: "DictConfig") -> None:
        nonlocal code, failure
        if failure is not None or code == INTERRUPTED:
            return
        own = list(HydraConfig.get().overrides.task)
        # Lightning's DDP launcher starts the other processes with sys.argv: give it this job alone,
        # and hide Hydra from it, for it would add options of its own.
        sys.argv = [sys.argv[0], verb, *own]
        HydraConfig.instance().cfg = None
        try:
            if "overrides" in cfg:
                cfg.overrides = own
            if "resume" in cfg:
                cfg = resume_from(apply_demo(cfg, own), own)
            result = load_verb(verb).run(cfg)
            code = max(code, int(result.get("exit_code", 0)) if isinstance(result, dict) else 0)
        except BaseException as error:
            # Hydra would print a line of its own about it; the first failure ends a sweep, as Ctrl-C does.
            failure = error

    # Lets errors through as exceptions; Hydra would print them and exit by itself.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    argv = sys.argv
    try:
        _run_hydra(
            args=parsed,
            args_parser=parser,
            task_function=job,
            config_path="pkg://longseq.configs",
            config_name=verb,
        )
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override!r} cannot be read ({str(error).splitlines()[0]}); a value with =, :, spaces, brackets or "
            "letters such as ö wants quotes of its own, such as 'run_dir=\"a=b\"'"
        ) from None
    finally:
        sys.argv = argv
    if isinstance(failure, MissingMandatoryValue):
        # The option that a verb cannot do without, ??? in its config.
        key = failure.full_key or "an option"
        raise ConfigError(f"longseq {verb} needs {key}=...; longseq {verb} --help says what it is") from None
    if failure is not None:
        raise failure
    return code


def flags_as_overrides(args: list[str], own: set[str]) -> list[str]:
    """`--device cpu` and `--device=cpu` as `device=cpu`.

    Args:
        args: of the command line.
        own: Hydra's flags, which stay as they are.

    Raises:
        ConfigError: for a flag without a value.
    """
    found, rest = [], iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        if not flag.startswith("--") or flag in own or flag == "--":
            found.append(arg)
            continue
        value = value if equals else next(rest, "")
        if value.startswith("--") or not value:
            raise ConfigError(f"{flag} wants a value: {flag}=..., or {flag[2:].replace('-', '_')}=...")
        found.append(f"{flag[2:].replace('-', '_')}={value}")
    return found


def check_overrides(verb: str, overrides: list[str]) -> list[str]:
    """Raises ConfigError with the nearest valid keys or choices, before anything heavy is imported.

    Returns:
        The overrides, with Hydra's + in front of new keys in places that the config leaves open (`data: {}`).
    """
    known_groups = groups()
    # No experiment is the default, but Hydra does not take it as a choice.
    overrides = [part for override in overrides if override != "experiment=null" for part in split_model_name(override)]
    overrides = [quoted_pattern(plain_word(verb, override)) for override in overrides]
    plain = []
    for override in overrides:
        match = GROUP_OVERRIDE.match(override)
        if match is None or ("=" not in override and not override.startswith("~")):
            raise ConfigError(f"{override!r} is not an override; expected key=value, such as backbone.d_model=128")
        key, value = match["key"], match["value"] or ""
        if key.split("@")[0] in known_groups:
            check_choice(key.split("@")[0], value, known_groups)
            plain.append(override if not is_sweep(value) else f"{key}={value.split(',')[0]}")
        elif override.startswith("~") or key.startswith("hydra"):
            continue
        else:
            plain.append(override.split("=")[0] + "=null")
    known, opened = compose_and_check_keys(verb, plain, known_groups)
    return [add_or_set(override, known, opened) for override in overrides]


# Keys that are plain words of a verb, where Hydra would look for the config of that name.
PLAIN_WORDS = {"predict": ("task", "mode"), "embed": ("domain", "domain_name")}


def plain_word(verb: str, override: str) -> str:
    """`task=` of predict as `mode=`, `domain=` of embed as `domain_name=`, `backtest.windows=` as `data.backtest_windows=`."""
    override = re.sub(r"^backtest\.(windows|step)=", r"data.backtest_\1=", override)
    if verb not in PLAIN_WORDS:
        return override
    word, key = PLAIN_WORDS[verb]
    return re.sub(rf"^{word}=", f"{key}=", override)


def quoted_pattern(override: str) -> str:
    r"""A regular expression such as `data.test_pattern=_[0-4]\.wav$` in quotes: Hydra reads brackets its own way."""
    match = re.fullmatch(r"(?P<key>[+\w.]+_pattern)=(?P<value>.+)", override, re.DOTALL)
    if match is None or match["value"] == "null" or match["value"][0] in "'\"":
        return override
    # Hydra leaves backslashes alone but those in front of a quote or at the end.
    return f"""{match["key"]}='{match["value"].replace("'", chr(92) + "'")}'"""


def split_model_name(override: str) -> list[str]:
    """`backbone=timm:vit_tiny_patch16_224` as the backbone and its option `model`; everything else as it is."""
    match = re.fullmatch(r"backbone=(\w+):([\w.]+)", override)
    return [override] if match is None else [f"backbone={match[1]}", f"backbone.model={match[2]}"]


def add_or_set(override: str, known: set[str], opened: set[str]) -> str:
    """The override with the + that Hydra wants: for keys that are new, in open places, and for no others."""
    key = override.split("=")[0].lstrip("+")
    if override.startswith("+") and key in known:
        return override.lstrip("+")
    return f"+{override}" if key in opened and not override.startswith("+") else override


def is_sweep(value: str) -> bool:
    """Whether a value is a sweep's list such as `1,2,3`, and not one value."""
    return "," in value and not value.startswith(("[", "{", "'", '"'))


def check_choice(group: str, value: str, known_groups: dict[str, list[str]]) -> None:
    """Raises ConfigError if a group has no such choice."""
    for choice in value.strip("[]").split(","):
        choice = choice.strip()
        if choice in ("null", "") or choice.startswith(("glob(", "choice(")) or choice in known_groups[group]:
            continue
        raise ConfigError(f"{group} has no choice {choice!r}{nearest_of(choice, known_groups[group], 'Choices')}")


def compose_and_check_keys(verb: str, overrides: list[str], known_groups: dict[str, list[str]]) -> tuple[set[str], set[str]]:
    """Composes the groups alone and looks every other key up in the result.

    Returns:
        The keys that the config has, and those that stand in open places.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    choices = [o for o in overrides if o.split("=")[0].split("@")[0] in known_groups]
    GlobalHydra.instance().clear()
    with initialize_config_module("longseq.configs", version_base="1.3"):
        config = compose(verb, overrides=choices)
    known, opened = set(), set()
    for key in (override.split("=")[0] for override in overrides if override not in choices):
        try:
            (opened if check_key(config, key.lstrip("+"), [*known_groups]) else known).add(key.lstrip("+"))
        except ConfigError:
            # With a + it may be new.
            if not key.startswith("+"):
                raise
    return known, opened


def check_key(config: Any, key: str, group_names: list[str]) -> bool:
    """Whether a key stands in an open place, an empty dict that takes any key.

    Raises:
        ConfigError: if the config has no such key; the message holds the nearest ones at the level that fails.
    """
    from omegaconf import DictConfig, OmegaConf

    node, done = config, []
    for part in key.split("."):
        if OmegaConf.is_list(node) or node is None:
            return False
        if isinstance(node, DictConfig) and not len(node):
            return True
        if not isinstance(node, DictConfig) or part not in list(node):
            known = [str(name) for name in node] if isinstance(node, DictConfig) else []
            place = ".".join([*done, part])
            every = known if done else sorted({*known, *group_names})
            near = far_keys(config, part, cutoff=1.0) or difflib.get_close_matches(part, every, n=3, cutoff=0.5)
            near = near or far_keys(config, part, cutoff=0.75)
            near = [".".join([*done, name]) if "." not in name else name for name in near]
            hint = f"; did you mean {' or '.join(near)}?" if near else f". Known here: {', '.join(every)}"
            raise ConfigError(f"there is no option {place!r}{hint} (+{key}=... adds a new key)")
        node = None if OmegaConf.is_missing(node, part) or OmegaConf.is_interpolation(node, part) else node[part]
        done.append(part)
    return False


def far_keys(config: Any, part: str, cutoff: float) -> list[str]:
    """Full names of options anywhere in the config whose last part is as near to the given word as `cutoff` (1: the same)."""
    from omegaconf import DictConfig

    found: dict[str, list[str]] = {}

    def walk(node: Any, path: list[str]) -> None:
        for name in node:
            found.setdefault(str(name), []).append(".".join([*path, str(name)]))
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                walk(child, [*path, str(name)])

    walk(config, [])
    return [key for name in difflib.get_close_matches(part, found, n=3, cutoff=cutoff) for key in found[name]][:4]


if __name__ == "__main__":
    main()
