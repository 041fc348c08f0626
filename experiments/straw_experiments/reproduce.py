"""The command `reproduce.py`: every published study, one after the other, and their pages.

Only the standard library is imported: each study, and the pages, is a process of its own.
"""

import argparse
import contextlib
import io
import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from straw_experiments.char_lm import config as characters
from straw_experiments.configs import CARD, STUDIES
from straw_experiments.documents import config as documents
from straw_experiments.fields import config as fields
from straw_experiments.image_classification import config as images
from straw_experiments.necessity import config as necessity
from straw_experiments.runner import lock, records
from straw_experiments.runner.command import fail, interruptible, program, sibling
from straw_experiments.runner.settings import Parser
from straw_experiments.runner.signals import Stopped
from straw_experiments.table_classification import config as tables
from straw_experiments.weight_prediction import config as weights

PARSERS = {
    "run": images.parse,
    "weight-prediction": weights.parse,
    "char-lm": characters.parse,
    "tables": tables.parse,
    "documents": documents.parse,
    "fields": fields.parse,
    "necessity": necessity.parse,
}
"""What reads the flags of each command."""

_DATA_FLAGS = {
    "run": ("dataset", "data_dir", "archive"),
    "char-lm": ("data_dir",),
    "fields": ("data_dir", "archive"),
    "necessity": ("data_dir", "archive"),
}


def main(argv: Sequence[str]) -> int:
    """Run the studies that the command line names, as far as they are still to be done.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 2 bad input, 128 + N stopped by signal N, else that of the study
        that failed.
    """
    arguments = _read(argv)
    out = Path(arguments.out)
    commands = {name: _words(name, arguments) for name in _names(arguments.only)}
    if mistake := _first_mistake(commands):
        return fail(mistake, 2)
    waiting = {name: words for name, words in commands.items() if not _is_finished(out, name)}
    if arguments.dry_run:
        for name, words in waiting.items():
            if estimate := STUDIES[name].estimate:
                print(f"# {name}, by estimate: {estimate}")
            for command in _commands(name, words, out):
                print(_shown(command))
        return 0
    return interruptible(lambda _: _locked(waiting, out, len(commands)), resumes=True)


def _locked(waiting: dict[str, list[str]], out: Path, studies: int) -> int:
    with contextlib.ExitStack() as until_the_end:
        try:
            until_the_end.enter_context(lock.held(out))
        except lock.LockedError as error:
            return fail(error, 2)
        return _run(waiting, out, studies)


def _read(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; what is run.py's to check is left to it."""
    parser = Parser(
        prog=program("reproduce"),
        description="Run the published studies one after the other, each with its"
        " script, and write the pages of results after each. Finished"
        " studies are not run again, and a stopped one goes on where it was: give the same command"
        " once more.",
        epilog="Studies, in the order in which they run. On a CPU with 2 cores, those before"
        " set2_resnet34 take some hours together, and each from there on takes hours. static_mnist,"
        " fields and fields_kinds need MNIST, characters and necessity Penn Treebank, needles and"
        " documents the weights of SmolLM2.",
    )
    parser.usage = "%(prog)s [flags] [-- flags of run.py]"
    rows = [f"  {name:<20}  {study.flags}" for name, study in STUDIES.items()]
    parser.epilog = "\n".join([parser.epilog or "", "", *rows])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*STUDIES, "card"],
        metavar="STUDY",
        help="run these, in this order (all); card: what a GPU does in minutes and a CPU in hours",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        help="runs of each model (3, and 1 of ranks, ResNet-34 and the widest control)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=str(Path("results", "reproduction")),
        help="folder for a folder of each study, and for the pages (%(default)s)",
    )
    for flag, metavar in (("dataset", "NAME"), ("data-dir", "DIR"), ("archive", "FILE")):
        parser.add_argument(f"--{flag}", metavar=metavar, help="as run.py takes it")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands that are still to be run"
    )
    split = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:split], argparse.Namespace(more=argv[split + 1 :]))


def _names(only: Sequence[str] | None) -> list[str]:
    """List the studies that a command line names, each once."""
    named = [CARD if name == "card" else (name,) for name in only or STUDIES]
    return list(dict.fromkeys(itertools.chain.from_iterable(named)))


def _words(name: str, arguments: argparse.Namespace) -> list[str]:
    """Write the flags of a study's command."""
    study, out = STUDIES[name], Path(arguments.out, name)
    words = study.flags.split()
    words += ["--seeds", arguments.seeds or str(study.seeds)]
    for flag in _DATA_FLAGS.get(study.command, ()):
        word = f"--{flag.replace('_', '-')}"
        if (value := getattr(arguments, flag)) is not None and word not in words:
            words += [word, value]
    if study.command == "run":
        words += arguments.more
    words += ["--out", str(out)]
    return words + ["--resume"] * records.is_begun(out)


def _first_mistake(commands: dict[str, list[str]]) -> str | None:
    """Check every command with its own parser, so that the last is known to be sound."""
    for name, words in commands.items():
        printed, command = io.StringIO(), STUDIES[name].command
        try:
            with contextlib.redirect_stderr(printed):
                PARSERS[command](words)
        except SystemExit:
            mistake = printed.getvalue().strip().removeprefix(f"{program(command)}: ")
            return f"{name}: {mistake}"
    return None


def _is_finished(out: Path, name: str) -> bool:
    needed = ["summary.json", *["analysis.json"] * STUDIES[name].analysed]
    return all(records.is_whole(out / name / file) for file in needed)


def _run(waiting: dict[str, list[str]], out: Path, studies: int) -> int:
    print(f"{studies} studies, {studies - len(waiting)} of them finished; results in {out}")
    for name, words in waiting.items():
        commands = _commands(name, words, out)
        print(f"\n=== {name}: {_shown(commands[0])}", flush=True)
        for command in commands:
            if code := _call(command):
                if code != 2:  # else the command has said all
                    fail(f"{name} failed, exit code {code}", code)
                return code
        if code := _write_pages(out):
            return code
    return 0 if waiting else _write_pages(out)


def _commands(name: str, words: list[str], out: Path) -> list[list[str]]:
    """List the commands of a study: its own, and `analyse` if its modulator is measured."""
    study = [*sibling(STUDIES[name].command), *words]
    analysis = [*sibling("analyse"), str(out / name)]
    return [study, analysis] if STUDIES[name].analysed else [study]


def _shown(command: Sequence[str]) -> str:
    return shlex.join(["python", *command])


def _write_pages(out: Path) -> int:
    return _call([*sibling("write-results"), str(out), "--out", str(out / "pages")])


def _call(words: Sequence[str]) -> int:
    """Run a Python program to its end; return its exit code, of a signal as shells count it."""
    own = str(Path(__file__).parents[1])  # where a child finds this package
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), own]))
    child = subprocess.Popen([sys.executable, *words], env={**os.environ, "PYTHONPATH": path})
    try:
        code = child.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Stopped) and stop.number != signal.SIGINT:
            child.send_signal(stop.number)
        _stop(child)
        raise
    return code if code >= 0 else 128 - code


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """Let a child end; a terminal's Ctrl-C reaches it, too, but a signal to this process does not.

    A second Ctrl-C ends it at once.
    """
    try:
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            child.wait()
    finally:
        child.kill()
