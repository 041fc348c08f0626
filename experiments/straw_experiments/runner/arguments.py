"""Command lines: what all scripts check alike. Only the standard library is imported."""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Answer a mistake with one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end the process."""
        self.exit(2, f"{self.prog}: {message} (--help explains the flags)\n")


def add_seeds(group: Any, of: str) -> None:
    """Add the flags that say how often, and how many at once.

    Args:
        group: Of an argparse parser.
        of: What is run, such as "a model".
    """
    group.add_argument(
        "--seed", type=whole(0, 2**31 - 1), default=0, help="of the first run (%(default)s)"
    )
    group.add_argument(
        "--seeds",
        type=whole(1, 1000),
        default=1,
        metavar="N",
        help=f"runs {of}, with seeds SEED, SEED + 1, ...; two or more give a standard deviation"
        " (%(default)s)",
    )
    group.add_argument(
        "--jobs",
        type=whole(1),
        metavar="N",
        help="runs that train at once, each on its share of the cores (default: on CPU one a core,"
        " at most 8; else 1)",
    )


def add_out(group: Any) -> None:
    """Add the flags that say where results go; `check_out` checks them."""
    group.add_argument(
        "--out", metavar="DIR", help="folder for the results (results/ and a name of the settings)"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue what is in --out; the other flags must be as they were",
    )


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers, for argparse."""
    wanted = f"a whole number of at least {least}" + (f", at most {most}" if most else "")

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return convert


def number(wanted: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """Return a reader of numbers, for argparse."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # No comparison with it holds.
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return convert


def check_out(
    arguments: argparse.Namespace,
    incidental: Sequence[str],
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Check that results may be written to `--out`, and that no earlier run's are in the way.

    Args:
        arguments: All settings, "out" and "resume" among them.
        incidental: Settings that may change between a run and its resumption.
        usual: What settings were that an earlier version's results do not name.

    Raises:
        ValueError: They may not, or the earlier run had other settings.
    """
    out = Path(arguments.out)
    config = out / "config.json"
    if config.exists():
        if not arguments.resume:
            raise ValueError(
                f"argument --out: {out} holds an earlier run; continue it with --resume, or choose"
                " another --out"
            )
        _check_same_settings(config, arguments, incidental, usual)
    ancestor = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=ancestor):  # The surest test, and it leaves nothing.
            pass
    except OSError as error:
        raise ValueError(f"argument --out: cannot write to {out}: {error.strerror}") from None


def _check_same_settings(
    config: Path, arguments: argparse.Namespace, incidental: Sequence[str], usual: Mapping[str, Any]
) -> None:
    try:
        earlier = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"argument --resume: cannot read {config}: {error}") from None
    for name, now in vars(arguments).items():
        before = earlier.get(name, usual.get(name))  # without it, an earlier version's
        if name not in incidental and before != now:
            flag = name.replace("_", "-")
            raise ValueError(
                f"argument --{flag}: --resume needs the earlier run's {before},"
                f" got {now}; give that, or choose another --out"
            )
