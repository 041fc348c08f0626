"""Settings as data: a dataclass whose fields hold default, flag, check and help of each setting.

Only the standard library is imported, so that a command line answers at once.
"""

import argparse
import dataclasses
import json
import re
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from straw_experiments.runner import limits, readers, records
from straw_experiments.runner.precision import USUAL, Precision

C = TypeVar("C", bound="RunConfig")


def setting(
    default: Any = None,
    help: str = "",
    *,
    group: str,
    read: Callable[[str], Any] = str,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    nargs: str | None = None,
    const: Any = None,
    shown: str | None = None,
    incidental: bool = False,
) -> Any:
    """Declare a setting: a dataclass field that is also a flag of the command line.

    Args:
        default: Its value where neither a flag nor another setting decides.
        help: One line for `--help`.
        group: Under which heading `--help` lists it.
        read: Turns a word of the command line into the value; a ValueError or
            `argparse.ArgumentTypeError` says what was expected.
        metavar: Stands for the value in `--help`.
        choices: The only values.
        nargs: As in argparse.
        const: The value of the flag alone, with `nargs="?"`.
        shown: What `--help` calls the default, where it is not simply `default`.
        incidental: Whether it may change between a run and its resumption, as it changes no result.
    """
    metadata = {
        "group": group,
        "incidental": incidental,
        "help": help,
        "shown": shown,
        "flag": {
            "type": read,
            "metavar": metavar,
            "choices": choices,
            "nargs": nargs,
            "const": const,
        },
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_WIDTH = 80  # characters of a line of --help
_HOW, _WHERE = "how to train", "data and results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that every study has.

    A study's own dataclass inherits from this one. `stored` is what `config.json` keeps of them.
    """

    precision: Precision = setting(
        USUAL,
        "dtype of the computation; parameters, optimizer, loss and stored files are float32 with"
        " either",
        group=_HOW,
        choices=get_args(Precision),
    )
    seed: int = setting(
        0, "seed of each model's first run", group=_HOW, read=readers.whole(0, 2**31 - 1)
    )
    seeds: int = setting(
        1,
        "runs of each model, with seeds SEED, SEED + 1, ...; two or more give a standard deviation",
        group=_HOW,
        read=readers.whole(1, 1000),
        metavar="N",
    )
    jobs: int | None = setting(
        None,
        "runs that train at once, each on its share of the cores",
        group=_HOW,
        read=readers.whole(1, 1024),
        metavar="N",
        shown="on CPU one a core, at most 8; else 1",
        incidental=True,
    )
    out: str = setting(
        "",
        "folder for the results",
        group=_WHERE,
        metavar="DIR",
        shown="results/ and a name made of the settings",
        incidental=True,
    )
    resume: bool = setting(
        False,
        "continue what is in --out; the other flags must be as they were",
        group=_WHERE,
        incidental=True,
    )
    tensorboard: bool = setting(
        False,
        "also write every epoch's figures for TensorBoard, to OUT/tensorboard",
        group=_WHERE,
        incidental=True,
    )


def stored(config: RunConfig) -> dict[str, Any]:
    """Return the settings that `config.json` and `summary.json` keep."""
    return dataclasses.asdict(config)


def defaults(config_class: type[C]) -> dict[str, Any]:
    """Return the default of every setting by name."""
    return dataclasses.asdict(config_class())


def flag(name: str) -> str:
    """Name a setting as the command line does, for messages: `argument --batch-size`."""
    return f"argument --{name.replace('_', '-')}"


class Parser(argparse.ArgumentParser):
    """Answer a mistake with one line on stderr and exit code 2.

    Args:
        prog: The program's name.
        description: What it does.
        epilog: What `--help` ends with.
        models: Listed below that with what they are, if given.
    """

    def __init__(self, prog: str, description: str, epilog: str = "", models: Any = None):
        rows = [] if models is None else catalogue("models", models)
        super().__init__(
            prog=prog,
            description=textwrap.fill(description, _WIDTH),
            epilog="\n".join([textwrap.fill(epilog, _WIDTH), *rows]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end the process."""
        self.exit(2, f"{self.prog}: {message} (--help explains the flags)\n")


def catalogue(title: str, entries: Mapping[str, Any]) -> list[str]:
    """Return lines of `--help` that say what may be chosen.

    Args:
        title: What they are.
        entries: Of a registry.
    """
    lines = ["", f"{title}:"]
    for entry in entries.values():
        text = textwrap.wrap(entry.help, _WIDTH - 24)
        lines += [f"  {entry.name:<20}  {text[0]}", *(f"{'':24}{line}" for line in text[1:])]
    return lines


def parse(
    parser: argparse.ArgumentParser,
    config_class: type[C],
    configure: Callable[[dict[str, Any]], C],
    argv: Sequence[str],
) -> C:
    """Read, complete and check a command line; a mistake ends the process with one line.

    Args:
        parser: Gets the flags.
        config_class: The study's settings.
        configure: Completes given settings and checks them; raises ValueError.
        argv: The words after the program's name.
    """
    try:
        return configure(read(parser, config_class, argv))
    except ValueError as error:
        parser.error(str(error))


def read(
    parser: argparse.ArgumentParser, config_class: type[C], argv: Sequence[str]
) -> dict[str, Any]:
    """Read the settings that a command line gives.

    Args:
        parser: Gets the flags; a mistake ends the process with its `error`.
        config_class: The study's settings.
        argv: The words after the program's name.

    Returns:
        The given settings by name, without those that are left to their defaults.
    """
    add_flags(parser, config_class)
    return vars(parser.parse_args(argv))


def add_flags(parser: argparse.ArgumentParser, config_class: type[C]) -> None:
    """Add a flag for every setting, under the headings of their groups; the study's own first."""
    own = config_class.__annotations__
    fields = sorted(dataclasses.fields(config_class), key=lambda field: field.name not in own)
    groups: dict[str, Any] = {}
    for field in fields:
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], field)


def _add_flag(group: Any, field: "dataclasses.Field[Any]") -> None:
    default = field.default
    if default is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        default = field.default_factory()
    words = f"--{field.name.replace('_', '-')}"
    text = field.metadata["help"].replace("%", "%%")
    if default is False:
        group.add_argument(words, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    shown = field.metadata["shown"] or _readable(default)
    text = f"{text} (default: {shown})" if shown else text
    options = {name: value for name, value in field.metadata["flag"].items() if value is not None}
    if options.get("choices"):
        options.pop("metavar", None)
    group.add_argument(words, default=argparse.SUPPRESS, help=text.strip(), **options)


def _readable(default: Any) -> str:
    if default is None or default == "":
        return ""
    values = default if isinstance(default, list) else [default]
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def readable_name(first: str, config: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Name a study by those of its settings that are not the usual ones.

    Values may be paths: what a file's name should not have in it becomes "-".

    Args:
        first: With what the name begins.
        config: All settings.
        usual: The settings that may be named, and their usual values.
    """
    parts = [
        re.sub(r"[^\w.+-]+", "-", f"{name.replace('_', '-')}-{listed(config[name])}")
        for name, value in usual.items()
        if config[name] != value
    ]
    return "_".join([first, *parts])


def with_out(
    chosen: Mapping[str, Any], first: str, usual: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """Return settings with a folder for the results: the given one, or one named by them.

    Args:
        chosen: All settings.
        first: With what the name begins.
        usual: The usual values of all settings.
        names: Of those that may be named.
    """
    name = readable_name(first, chosen, {each: usual[each] for each in names})
    return {**chosen, "out": chosen["out"] or str(Path("results", name))}


def listed(value: Any) -> str:
    """Write a setting, or a list of such, joined by "+"."""
    values = value if isinstance(value, list) else [value]
    return "+".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)


def check_once(name: str, values: Sequence[Any]) -> None:
    """Refuse a list that names a thing twice.

    Raises:
        ValueError: It does.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"{flag(name)}: got {listed(list(values))}; name each once")


def check_jobs(config: RunConfig, models: Sequence[Any]) -> None:
    """Check that there is memory for as many runs at once as are asked for.

    Raises:
        ValueError: There is not.
    """
    limits.check_jobs(config.jobs, config.seeds * len(models))


def check_out(config: RunConfig) -> None:
    """Check that results may be written to `config.out`, and that no earlier run's are in the way.

    Raises:
        ValueError: They may not, or the earlier run had other settings.
    """
    out = Path(config.out)
    if records.is_begun(out):
        if not config.resume:
            raise ValueError(
                f"argument --out: {out} holds an earlier run; continue it with --resume, or choose"
                " another --out"
            )
        _check_same_settings(out, config)
    check_writable(out)


def check_writable(out: Path) -> None:
    """Check that a folder is there or can be made, and takes files.

    Raises:
        ValueError: It is not, or does not.
    """
    try:
        ancestor = next(path for path in (out, *out.absolute().parents) if path.exists())
        with tempfile.TemporaryDirectory(dir=ancestor):  # The surest test, and it leaves nothing.
            pass
    except OSError as error:
        raise ValueError(f"argument --out: cannot write to {out}: {error.strerror}") from None


def _check_same_settings(out: Path, config: RunConfig) -> None:
    try:
        earlier = records.read_settings(out)
    except (OSError, records.RecordError) as error:
        raise ValueError(f"argument --resume: {error}") from None
    if earlier is None:
        return
    now = json.loads(json.dumps(stored(config)))  # as the file would have it
    usual = defaults(type(config))  # what an earlier version, which did not have it, did
    for field in dataclasses.fields(config):
        before = earlier.get(field.name, usual[field.name])
        if not field.metadata["incidental"] and before != now[field.name]:
            raise ValueError(
                f"{flag(field.name)}: --resume needs the earlier run's {before},"
                f" got {now[field.name]}; give that, or choose another --out"
            )


def check_same_data(config: RunConfig, now: Mapping[str, Any]) -> None:
    """Check that a run goes on with the data that it was begun with.

    Args:
        config: The settings.
        now: What `config.json` says of the data.

    Raises:
        ValueError: `config.out` has results of other data.
    """
    earlier = (records.read_settings(Path(config.out)) or {}).get("data", now)
    if earlier != now:
        raise ValueError(
            f"--resume: the results in {config.out} are from {earlier}, but the data are now"
            f" {now}. Give the earlier data, or choose another --out"
        )
