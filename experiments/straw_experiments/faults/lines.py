"""Command lines that are wrong, and what the answer to each has to say.

Each is to be answered with one line on stderr and exit code 2, before any work: nothing is written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """A wrong command line.

    Attributes:
        script: A subcommand of `straw-jax`, or a script in `benchmarks/`.
        words: Its arguments; files are those of `FILES`.
        says: Part of the answer.
    """

    script: str
    words: tuple[str, ...]
    says: str


FILES: Mapping[str, str] = {
    "file": "",
    "text.txt": "ab" * 5_000,
    "short.txt": "ab",
    "torn/config.json": "{",
    "list/config.json": "[]",
    "early/config.json": '{"rank": 16}',
    "results.json": "[]",
    "empty/set2/summary.json": "{}",
    "listed/set2/summary.json": "[]",
    "nothing/set2/summary.json": '{"config": {}, "results": {}}',
    "torn_summary/set2/summary.json": "{",
    "no_figures/set2/summary.json": '{"config": {"rank": 1}, "results": {"straw": {}}}',
}
"""What the lines name, by path."""

_LONG = "x" * 300  # no name of a file may be as long
_DIGITS = "9" * 5_000  # Python reads no number of as many
_MOST = "expected a whole number of at most"
_LEAST = "expected a whole number of at least"
_MEMORY = "of memory for"

_OF_EVERY_STUDY = {
    "--seed -1": "argument --seed: expected a whole number of at least 0, got '-1'",
    "--seed 2147483648": f"argument --seed: {_MOST} 2147483647",
    "--seeds 0": f"argument --seeds: {_LEAST} 1",
    "--seeds 1001": f"argument --seeds: {_MOST} 1000",
    f"--seeds {_DIGITS}": f"argument --seeds: {_MOST} 1000, got '9999",
    "--jobs 0": f"argument --jobs: {_LEAST} 1",
    "--jobs 99999999": f"argument --jobs: {_MOST} 1024",
    "--batch-size 0": f"argument --batch-size: {_LEAST} 1",
    "--batch-size 1e3": f"argument --batch-size: {_LEAST} 1, got '1e3'",
    "--batch-size 1000000000000": _MEMORY,
    "--batch-size 99999999999999999999": f"argument --batch-size: {_MOST} 1000000000000",
    "--learning-rate 0": "argument --learning-rate: expected a number above 0",
    "--learning-rate inf": "argument --learning-rate: expected a number of at most 1e+30",
    "--learning-rate nan": "argument --learning-rate: expected a number above 0",
    "--learning-rate": "argument --learning-rate: expected",
    "--out file": "argument --out: cannot write to file",
    "--out file/here": "argument --out: cannot write to file/here",
    "--out /proc/here": "argument --out: cannot write to /proc/here",
    f"--out {_LONG}": "File name too long",
    "--out torn --resume": "argument --resume: cannot read torn",
    "--out early": "argument --out: early holds an earlier run",
    "--nonsense": "unrecognized arguments: --nonsense",
    "walk": "unrecognized arguments: walk",
}
_ANSWERS = {
    "run": {
        **_OF_EVERY_STUDY,
        "--rank 0": f"argument --rank: {_LEAST} 1",
        "--rank 1.5": f"argument --rank: {_LEAST} 1",
        "--rank 99999999999": f"argument --rank: 99999999999 needs at least 138 PB {_MEMORY} the",
        "--rank 99999999999 --preset geometric": "argument --rank: --preset geometric sets it to 4",
        "--rank 99999999999 --executor vit": "argument --rank: 99999999999 needs at least",
        f"--rank {_DIGITS}": f"argument --rank: {_MOST} 1000000000000",
        "--batch-size 1000000000 --limit 4": "argument --batch-size: 1000000000 needs at least",
        "--seeds 1000 --jobs 1024": f"{_MEMORY} 1024 processes",
        "--epochs 0": f"argument --epochs: {_LEAST} 1",
        "--epochs 99999999999999999999": f"argument --epochs: {_MOST} 1000000",
        "--limit 1": f"argument --limit: {_LEAST} 2",
        "--fraction 0": "argument --fraction: expected a number above 0, at most 1",
        "--fraction 1e400": "argument --fraction: expected a number above 0, at most 1",
        "--validation 1": "argument --validation: expected a number between 0 and 1",
        "--models vgg": "argument --models: expected any of standalone",
        "--models ,": "argument --models: expected any of standalone",
        "--models wide_dense --executor vit": "with --executor vit expected any of",
        "--executor vit --base none": "argument --base: --executor vit generates",
        "--encoder trm --models geometric": "argument --encoder: only straw and compact",
        "--experiment 30pct": "argument --experiment: invalid choice",
        "--experiment 10pct_rank16 --rank 8": "--experiment 10pct_rank16 sets it to 16",
        "--preset large": "argument --preset: invalid choice",
        "--mesh 8": "argument --mesh: expected devices by axis",
        "--mesh data=3": "argument --mesh: expected data to divide the batch of 128",
        "--mesh data=9999999": "argument --mesh: expected devices by axis",
        "--mesh data=2 --jobs 2": "argument --jobs: with --mesh runs train one by one",
        "--distributed": "argument --distributed: needs --mesh",
        "--distributed nohost.invalid:1,2,1 --mesh data=2": "cannot find the host nohost.invalid",
        "--distributed localhost:99999,2,1 --mesh data=2": "expected HOST:PORT,COUNT,INDEX",
        "--distributed localhost:1,2,2 --mesh data=2": "expected HOST:PORT,COUNT,INDEX",
        "--archive none.zip": "argument --archive: expected EMNIST's gzip.zip, found no file",
        "--archive file": "argument --archive: file is no whole zip file",
        f"--archive {_LONG}": "argument --archive: expected EMNIST's gzip.zip, found no file",
        f"--dataset ./{_LONG}": "File name too long",
        "--dataset ./none": "none",
    },
    "tables": {
        **_OF_EVERY_STUDY,
        "--models tree": "argument --models: expected any of straw, shared, got tree",
        "--models straw straw": "name each once",
        "--width 46": "argument --width: expected a multiple of 4",
        "--units 99999": f"argument --units: {_MOST} 4096",
        "--rows 8": f"argument --rows: {_LEAST} 16",
        "--steps 99999999999": f"argument --steps: {_MOST} 1000000000",
        "--sets moons": "argument --sets: invalid choice: 'moons'",
        "--sets none iris": 'argument --sets: got "none" and others',
        "--splits 0": f"argument --splits: {_LEAST} 1",
        "--precision bfloat16": "argument --precision: expected float32",
    },
    "fields": {
        **_OF_EVERY_STUDY,
        "--models tree": "argument --models: expected any of last",
        "--models last last": "name each once",
        "--sizes 64-": "argument --sizes: expected",
        "--style 0": f"argument --style: {_LEAST} 1",
        "--steps 99999999999": f"argument --steps: {_MOST} 1000000000",
        "--fitted 257": f"argument --fitted: {_MOST} 256",
        "--precision bfloat16": "argument --precision: expected float32",
        "--archive none.zip": "argument --archive",
    },
    "necessity": {
        **{
            words: says
            for words, says in _OF_EVERY_STUDY.items()
            if not words.startswith("--learning-rate")
        },
        "--tasks chess": "argument --tasks: expected any of few_shot, labels, sine, rotation",
        "--tasks sine sine": "argument --tasks: got sine+sine; name each once",
        "--methods tree": "argument --methods: expected any of static, static_wide, pooled",
        "--methods delta delta": "name each once",
        "--tasks sine --methods pose": "argument --methods: none of pose applies to sine",
        "--size huge": "argument --size: invalid choice: 'huge'",
        "--steps 99999999999": f"argument --steps: {_MOST} 1000000000",
        "--rates 0": "argument --rates: expected a number above 0",
        "--rates inf": "argument --rates: expected a number of at most 1e+30",
        "--rates 0.001 1e-3": "argument --rates: got 0.001+0.001; name each once",
        "--precision bfloat16": "argument --precision: expected float32",
        "--archive none.zip": "argument --archive: expected EMNIST's gzip.zip, found no file",
        "--text none.txt": "argument --text: expected a text file, cannot read none.txt",
    },
    "documents": {
        **_OF_EVERY_STUDY,
        "--task poems": "argument --task: invalid choice: 'poems'",
        "--models tree": "argument --models: expected any of gradients",
        "--kernels x": "argument --kernels: invalid choice: 'x'",
        "--rank 577": f"argument --rank: {_MOST} 576",
        "--length 15": f"argument --length: {_LEAST} 16",
        "--passage 1": f"argument --passage: {_LEAST} 2",
        "--questions 3 --facts 2": "argument --questions: expected at most --facts 2, got 3",
        "--test-lengths 8000 8100 --passage 100": "argument --test-lengths: expected contexts and",
        "--tests 1": f"argument --tests: {_LEAST} 2",
        "--texts none": "argument --texts: expected a folder of texts, cannot read none",
        "--texts file": "argument --texts: expected a folder of texts, cannot read file",
    },
    "weight-prediction": {
        **_OF_EVERY_STUDY,
        "--networks 2": "argument --networks: expected sizes of layers",
        "--networks 2-0-1": "argument --networks: expected sizes of layers",
        "--networks 2-99999999-1": "argument --networks: 2-99999999-1 needs at least",
        "--networks 2-5-1 2-5-1": "name each once",
        f"--networks 1{'-1' * 200}": "argument --networks: expected sizes of layers",
        "--pairs 0": "argument --pairs: expected a number above 0",
        "--pairs 1e30": "argument --pairs: 1e+30 needs at least",
        "--pairs 1e308": "argument --pairs: expected a number of at most 1e+30",
        "--pairs 0.001": "argument --pairs: expected at least half a pair",
        "--embedding 99999999999": "argument --embedding: 99999999999 needs at least",
        "--steps 99999999999": f"argument --steps: {_MOST} 1000000000",
        "--predictors max": "argument --predictors: expected any of mean, attention",
        "--predict outputs --pairs 2": "argument --pairs: is of weights",
        "--predict outputs --networks 9-99999999-1": "argument --networks: 9-99999999-1 needs at",
        "--optimizer sgd": "argument --optimizer: invalid choice",
    },
    "char-lm": {
        **_OF_EVERY_STUDY,
        "--parameters 0": f"argument --parameters: {_LEAST} 1",
        "--parameters 999999999999": "argument --parameters: 999999999999 needs at least",
        "--hyper-features 99999999": "argument --hyper-features: 99999999 takes at least",
        "--embedding 99999999999": "argument --embedding: 99999999999 takes at least",
        "--rank 99999999999": "argument --rank: 99999999999 takes at least",
        "--length 99999999999": "--length 99999999999 needs at least",
        "--epochs 99999999999999999999": f"argument --epochs: {_MOST} 1000000",
        "--sample-length 99999999": f"argument --sample-length: {_MOST} 1000000",
        "--dropout 1": "argument --dropout: expected a number of at least 0, below 1",
        "--learning-rate 1 2": "expected one rate, or one for each of 5 models, got 2",
        "--models gru": "argument --models: expected any of lstm",
        "--models lstm lstm": "name each once",
        "--text none.txt": "argument --text: expected a text file, cannot read none.txt",
        f"--text {_LONG}": "argument --text: expected a text file, cannot read",
    },
    "analyse": {
        "": "the following arguments are required: RESULTS",
        "none": "argument RESULTS: expected a folder with results of run.py",
        "file": "argument RESULTS: expected a folder with results of run.py",
        _LONG: "argument RESULTS: expected a folder with results of run.py",
        "torn": "argument RESULTS: expected a folder with results of run.py",
        "early": "argument RESULTS: early/config.json has no",
        "early --images 1": f"argument --images: {_LEAST} 2",
        "early --images 99999999999999": f"argument --images: {_MOST} 1000000000000",
        "early --archive file": "argument --archive: file is no whole zip file",
        "early --rank 3": "unrecognized arguments: --rank 3",
    },
    "reproduce": {
        "--only set9": "argument --only: invalid choice: 'set9'",
        "--only": "argument --only: expected at least one argument",
        "--only set3 --seeds 99999": f"set3: argument --seeds: {_MOST} 1000",
        "--only outputs --seeds none": f"outputs: argument --seeds: {_LEAST} 1",
        "--only set3 --out file": "set3: argument --out: cannot write to file",
        f"--only set3 --out {_LONG}": "File name too long",
        "--only set3 --archive none.zip": "set3: argument --archive: expected EMNIST's gzip.zip",
        "--only rank1 -- --rank 99999999999": "rank1: argument --rank: 99999999999 needs at least",
        "--only set3 --rank 8": "unrecognized arguments: --rank 8",
    },
    "write-results": {
        "": "the following arguments are required: FOLDER",
        "none --out pages": "expected finished studies, found no",
        "file --out pages": "expected finished studies, found no",
        "empty --out pages": "empty/set2/summary.json",
        "listed --out pages": "listed/set2/summary.json",
        "nothing --out pages": "nothing/set2/summary.json: expected results, got none",
        "torn_summary --out pages": "cannot read torn_summary/set2/summary.json",
        "no_figures --out pages": "no_figures/set2/summary.json: expected one of",
    },
    "run.py": {
        "everything --models straw": "argument what: invalid choice",
        "--models other": "argument --models: invalid choice",
        "--models straw --batch-sizes 0": f"argument --batch-sizes: {_LEAST} 1",
        "--models straw --batch-sizes 99999999999": "batch 99999999999, rank 16, base none needs",
        "--models straw --ranks 99999999999": "batch 128, rank 99999999999, base none needs",
        "layers --widths 99999999999": "width 99999999999 needs at least",
        "--models straw --repeats 99999999999": f"argument --repeats: {_MOST} 1000000",
        "--models straw --seconds nan": "argument --seconds: expected a number of at least 0",
        "--models straw --out /proc/x.json": "argument --out: cannot write to /proc",
        "--models straw --out results.json": "argument --out: results.json is no results file",
        "--models straw --out .": "argument --out: . is no results file",
        f"--models straw --out {_LONG}": "argument --out:",
    },
    "prediction.py": {
        "--models straw --networks 2-1": "argument --networks: expected sizes such as 2-5-1",
        "--models straw --networks 2-99999999999-1": "2-99999999999-1 needs at least",
        "--models straw --pairs 999999999999": "2-5-1 needs at least",
        "--models straw --batch-sizes 0": f"argument --batch-sizes: {_LEAST} 1",
    },
    "language.py": {
        "--models straw_lstm --length 999999999999": "needs at least",
        "--models straw_lstm --batch-sizes x": f"argument --batch-sizes: {_LEAST} 1, got 'x'",
        "--models straw_lstm --repeats 99999999999": f"argument --repeats: {_MOST} 1000000",
    },
}


LINES = [
    Line(script, tuple(words.split()), says)
    for script, answers in _ANSWERS.items()
    for words, says in answers.items()
]
"""All wrong command lines."""


def write_files(folder: Path) -> Sequence[Path]:
    """Write what the lines name into an empty folder; return the paths."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [folder / name for name in FILES]
