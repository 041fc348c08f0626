"""`python -m straw_experiments.faults`: make faults, and count what comes of them."""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from straw_experiments.faults import answers, data, exports, processes, stored
from straw_experiments.faults.outcomes import Faults, Kind, Outcome, Trial, table
from straw_experiments.runner import readers

FAULTS: Mapping[str, Faults] = {
    "stored": Faults("a results folder with damaged files is gone on with", stored.prepare, 4),
    "data": Faults("a damaged file of data or of what is kept of them is read", data.prepare, 2),
    "exports": Faults("a damaged saved model is read", exports.prepare, 0.5),
    "lines": Faults(
        "a wrong command line is given", answers.prepare_lines, 1, len(answers.COMMANDS)
    ),
    "arguments": Faults(
        "a function is called with a wrong argument",
        answers.prepare_arguments,
        1,
        len(answers.CALLS),
    ),
    "kills": Faults("a study is stopped by signals and gone on with", processes.prepare_kills, 2),
    "workers": Faults("a process that trains is killed", processes.prepare_workers, 1),
    "pairs": Faults("two processes write to one folder", processes.prepare_pairs, 1),
    "disks": Faults("the disk is full, or the folder goes", processes.prepare_disks, 1),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make faults until the time is over.

    Args:
        argv: The flags; by default those of the process.

    Returns:
        The exit code: 1 if a fault was silent, ended in a traceback, or lost something; else 0.
    """
    given = parser().parse_args(argv)
    if given.trial is not None:
        return _again(given.only[0], given.seed, given.trial)
    chosen = {name: FAULTS[name] for name in given.only}
    counts: dict[str, Counter[Outcome]] = {name: Counter() for name in chosen}
    for name, number, trial in campaign(chosen, given.seed, 60 * given.minutes):
        counts[name][trial.outcome] += 1
        if trial.outcome.is_defect:
            print(_defect(name, given.seed, number, trial), flush=True)
    print(table(counts))
    return int(any(o.is_defect for counted in counts.values() for o in counted))


def campaign(
    chosen: Mapping[str, Faults], seed: int, seconds: float
) -> Iterator[tuple[str, int, Trial]]:
    """Make faults of several kinds, each for its share of the time.

    Args:
        chosen: The kinds by name.
        seed: Of all of them.
        seconds: After which no more is begun. Every kind has one trial at least.

    Yields:
        Of each trial its kind, its number, and what came of it.
    """
    began = time.monotonic()
    with _place() as place:
        kinds: dict[str, Kind] = {}
        used, done = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, 0)
        while waiting := [name for name in chosen if done[name] != chosen[name].trials]:
            name = min(waiting, key=lambda name: (done[name] > 0, used[name] / chosen[name].share))
            if done[name] and time.monotonic() - began > seconds:
                return
            start = time.monotonic()
            if name not in kinds:
                kinds[name] = _prepared(name, place)
                start = time.monotonic()
            trial = kinds[name](_generator(name, seed, done[name]), done[name])
            used[name] += time.monotonic() - start
            yield name, done[name], trial
            done[name] += 1


def _again(name: str, seed: int, number: int) -> int:
    with _place() as place:
        trial = _prepared(name, place)(_generator(name, seed, number), number)
    print(f"{trial.outcome.value}: {trial.fault}\n{trial.answer}")
    return int(trial.outcome.is_defect)


def _prepared(name: str, place: Path) -> Kind:
    folder = place / name
    folder.mkdir()
    return FAULTS[name].prepare(folder)


def _generator(name: str, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """Make a folder for a campaign, with a cache of programs that are quickly compiled."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        options: dict[str, Any] = {
            "jax_compilation_cache_dir": os.path.join(name, "cache"),
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_disable_most_optimizations": True,
        }
        before = {option: jax.config.values[option] for option in options}
        environment = {option.upper(): str(value) for option, value in options.items()}
        with mock.patch.dict(os.environ, environment):  # of processes; what follows, of this one
            try:
                for option, value in options.items():
                    jax.config.update(option, value)
                yield Path(name)
            finally:
                for option, value in before.items():
                    jax.config.update(option, value)


def _defect(name: str, seed: int, number: int, trial: Trial) -> str:
    again = f"python -m straw_experiments.faults --only {name} --seed {seed} --trial {number}"
    return f"{trial.outcome.value.upper()}: {trial.fault}\n  {trial.answer}\n  {again}"


def parser() -> argparse.ArgumentParser:
    """Make what reads the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m straw_experiments.faults", description=__doc__, add_help=True
    )
    flags.add_argument("--seed", type=readers.whole(0, 2**31 - 1), default=0)
    flags.add_argument(
        "--minutes", type=float, default=5.0, help="after which no trial is begun (default: 5)"
    )
    flags.add_argument(
        "--only",
        nargs="+",
        choices=list(FAULTS),
        default=list(FAULTS),
        metavar="KIND",
        help="kinds of faults: " + "; ".join(f"{name}: {x.help}" for name, x in FAULTS.items()),
    )
    flags.add_argument(
        "--trial",
        type=readers.whole(0, 10**9),
        help="do this trial alone, of one kind, and print what it answers",
    )
    return flags


if __name__ == "__main__":
    sys.exit(main())
