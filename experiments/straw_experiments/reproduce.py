"""Reproduce every result of docs/results: `python experiments/reproduce.py --help`.

Only the standard library is imported: studies and the writing of pages are processes of their own.
"""

import argparse
import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from straw_experiments.char_lm import config as language_arguments
from straw_experiments.image_classification.config import parse
from straw_experiments.runner.arguments import Parser
from straw_experiments.runner.command import fail
from straw_experiments.weight_prediction import config as weight_arguments

READERS = {
    "run.py": parse,
    "weight_prediction.py": weight_arguments.parse,
    "char_lm.py": language_arguments.parse,
}
_HERE = Path(os.path.relpath(Path(__file__).parents[1]))  # short in the record of each command


class Study(NamedTuple):
    """A command line of run.py, or of another script.

    Attributes:
        flags: Of it.
        seeds: How many it takes, unless told otherwise.
        analysed: Whether analyse.py looks at what comes out.
        script: Which it is.
    """

    flags: str
    seeds: int = 1
    analysed: bool = False
    script: str = "run.py"


_SMALL = "--models standalone wide_dense wide_compute straw"
_TRAINED = "--base trained --models wide_dense wide_compute straw"
_RANK = "--fraction 0.1 --epochs 5 --models straw --rank"
_OTHER_RANKS = (1, 2, 4, 8, 32, 64)  # rank 16 is set2's


def _prediction(flags: str, seeds: int = 1) -> Study:
    return Study(flags, seeds, script="weight_prediction.py")


_GENERATED = "--epochs 10 --learning-rate 0.002 --schedule cosine"


def _forms(network: str) -> str:
    return " ".join(f"{network}{form}" for form in ("", "_narrow", "_generated"))


# In the order in which they run: the quick ones first.
STUDIES: dict[str, Study] = {
    "set2": Study(f"--experiment 10pct_rank16 {_SMALL}", seeds=3, analysed=True),
    "set2_trained": Study(f"--experiment 10pct_rank16 {_TRAINED}", seeds=3, analysed=True),
    "preset2": Study("--preset compact --fraction 0.1", seeds=3, analysed=True),
    "set3": Study(f"--experiment 20pct_rank32 {_SMALL}", seeds=3, analysed=True),
    "set3_trained": Study(f"--experiment 20pct_rank32 {_TRAINED}", seeds=3),
    "preset3": Study("--preset compact --fraction 0.2", seeds=3),
    "geometry3": Study("--preset geometric --fraction 0.2", seeds=3, analysed=True),
    "trm2": Study("--fraction 0.1 --encoder trm --models straw", seeds=3),
    "vit2": Study("--fraction 0.1 --executor vit --models standalone wide straw", seeds=3),
    "weights_mean": _prediction("--networks 2-5-1 4-10-1", seeds=3),
    "weights_attention": _prediction("--networks 4-10-1 --predictors attention"),
    "weights_linear": _prediction("--networks 5-1 --pairs 0.6 1 2"),
    **{
        f"weights_embedding{n}": _prediction(f"--networks 4-10-1 --pairs 3 --embedding {n}")
        for n in (64, 256, 512)
    },
    "weights_adam": _prediction(
        "--networks 4-10-1 --pairs 3 --optimizer adam --learning-rate 0.003"
    ),
    "outputs": _prediction("--predict outputs"),
    "static_wrn": Study(f"--fraction 0.1 {_GENERATED} --models {_forms('wrn_16_1')}"),
    **{f"rank{rank}": Study(f"{_RANK} {rank}") for rank in _OTHER_RANKS},
    **{f"rank{rank}_trained": Study(f"{_RANK} {rank} --base trained") for rank in _OTHER_RANKS},
    "set2_wide": Study("--experiment 10pct_rank16 --models wide"),
    "set2_resnet34": Study("--experiment 10pct_rank16 --models resnet34"),
    "geometry1": Study(
        "--preset geometric --fraction 1 --epochs 3 --models compact_static geometric",
        seeds=3,
        analysed=True,
    ),
    "set1": Study(f"--experiment full_rank16 {_SMALL}", seeds=3),
    "set3_resnet34": Study("--experiment 20pct_rank32 --models resnet34"),
    "set1_resnet34": Study("--experiment full_rank16 --models resnet34"),
    # These need data of their own, and end it all where there are none.
    "static_mnist": Study(
        f"--dataset mnist --fraction 1 {_GENERATED} --models {_forms('conv7')}", seeds=3
    ),
    "characters": Study(
        "--epochs 1 --learning-rate 0.004 0.016 0.016 0.008 0.004", seeds=3, script="char_lm.py"
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run the studies that the command line names, as far as they are still to be done.

    Returns:
        The exit code: 0 finished, 2 bad input, 130 stopped by Ctrl-C, else that of the study that
        failed.
    """
    arguments = _read(argv)
    out = Path(arguments.out)
    commands = {name: _words(name, arguments) for name in arguments.only or STUDIES}
    if mistake := _first_mistake(commands):
        return fail(mistake, 2)
    waiting = {name: words for name, words in commands.items() if not _is_finished(out, name)}
    if arguments.dry_run:
        for name, words in waiting.items():
            for program in _programs(name, words, out):
                print(shlex.join(["python", *program]))
        return 0
    try:
        return _run(waiting, out, len(commands))
    except KeyboardInterrupt:
        again = shlex.join(["python", *sys.argv])
        return fail(f"stopped; to go on: {again}", 130)


def _read(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; what is run.py's to check is left to it."""
    parser = Parser(
        prog="reproduce.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [flags] [-- flags of run.py]",
        description=textwrap.fill(
            "Run the studies behind docs/results one after the other, each with run.py,"
            " weight_prediction.py or char_lm.py, and write the pages of results after each."
            " Finished studies are not run again, and a stopped one goes on where it was: give the"
            " same command once more.",
            width=88,
        ),
        epilog="studies, in the order in which they run. On a CPU with 2 cores, those before"
        " set2_resnet34\ntake some hours together, and each from there on takes hours. static_mnist"
        " needs MNIST,\ncharacters Penn Treebank:\n"
        + "".join(f"  {name:<19} {study.flags}\n" for name, study in STUDIES.items()),
    )
    parser.add_argument(
        "--only", nargs="+", choices=STUDIES, metavar="STUDY", help="run these, in this order (all)"
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
        help="folder for a folder of each study, and for pages (%(default)s)",
    )
    for flag, metavar in (("dataset", "NAME"), ("data-dir", "DIR"), ("archive", "FILE")):
        parser.add_argument(f"--{flag}", metavar=metavar, help="as run.py takes it")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands that are still to be run"
    )
    split = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:split], argparse.Namespace(more=argv[split + 1 :]))


def _words(name: str, arguments: argparse.Namespace) -> list[str]:
    """Write a study's command line, without "python"."""
    study, out = STUDIES[name], Path(arguments.out, name)
    words = [str(_HERE / study.script), *study.flags.split()]
    words += ["--seeds", arguments.seeds or str(study.seeds)]
    flags = {"run.py": ("dataset", "data_dir", "archive"), "char_lm.py": ("data_dir",)}
    for flag in flags.get(study.script, ()):
        word = f"--{flag.replace('_', '-')}"
        if (value := getattr(arguments, flag)) is not None and word not in words:
            words += [word, value]
    if study.script == "run.py":
        words += arguments.more
    words += ["--out", str(out)]
    return words + ["--resume"] * (out / "config.json").exists()


def _first_mistake(commands: dict[str, list[str]]) -> str | None:
    """Let each script's own reader check its commands, so that the last is known to be sound."""
    for name, words in commands.items():
        said, script = io.StringIO(), STUDIES[name].script
        try:
            with contextlib.redirect_stderr(said):
                READERS[script](words[1:])
        except SystemExit:
            return f"{name}: {said.getvalue().strip().removeprefix(f'{script}: ')}"
    return None


def _is_finished(out: Path, name: str) -> bool:
    analysed = (out / name / "analysis.json").exists() or not STUDIES[name].analysed
    return analysed and (out / name / "summary.json").exists()


def _run(waiting: dict[str, list[str]], out: Path, studies: int) -> int:
    print(f"{studies} studies, {studies - len(waiting)} of them finished; results in {out}")
    for name, words in waiting.items():
        print(f"\n=== {name}: {shlex.join(['python', *words])}", flush=True)
        for program in _programs(name, words, out):
            if code := _call(program):
                if code != 2:  # else the program has said all
                    fail(f"{name} failed, exit code {code}", code)
                return code
        if code := _write_pages(out):
            return code
    return 0 if waiting else _write_pages(out)


def _programs(name: str, words: list[str], out: Path) -> list[list[str]]:
    """List what a study takes: run.py, and analyse.py if its modulator is looked at."""
    analysis = [str(_HERE / "analyse.py"), str(out / name)]
    return [words, analysis] if STUDIES[name].analysed else [words]


def _write_pages(out: Path) -> int:
    return _call([str(_HERE / "write_results.py"), str(out), "--out", str(out / "pages")])


def _call(words: Sequence[str]) -> int:
    """Run a Python program to its end; return its exit code, of a signal as shells count it."""
    child = subprocess.Popen([sys.executable, *words])
    try:
        code = child.wait()
    except KeyboardInterrupt:
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
