"""Run scripts and the Python blocks of pages, one after the other in one process.

`python each.py FILE...` gives each file a namespace of its own, and a new folder below this one. A
process costs seconds, most of which go into imports.
"""

import contextlib
import gc
import io
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_FOUND = "found.json"


class Ran(NamedTuple):
    """What a file did: what it printed, and how it failed, or "" if it did not."""

    printed: str
    failure: str


def run_each(
    files: Sequence[Path], folder: Path, environment: Mapping[str, str]
) -> dict[Path, Ran]:
    """Run files in an empty folder, with warnings as errors; return what each did."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, *map(str, files)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / _FOUND).read_text(encoding="utf-8"))
    return {path: Ran(*found[str(path)]) for path in files}


def program(path: Path) -> str:
    """Read a script; or of a page its Python blocks, each line at its place, the others empty."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    parts = re.split(r"(```python\n)(.*?)```", text, flags=re.DOTALL)  # prose, fence, block, ...
    return "".join(
        part if number % 3 == 2 else "\n" * part.count("\n") for number, part in enumerate(parts)
    )


def _ran(path: Path) -> Ran:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(program(path), path, "exec"), {"__name__": "__main__"})
    except BaseException:  # SystemExit, too
        return Ran(printed.getvalue(), traceback.format_exc())
    return Ran(printed.getvalue(), "")


def _main(files: Sequence[str]) -> None:
    top, found = Path.cwd(), {}
    for number, file in enumerate(files):
        place = top / str(number)
        place.mkdir()
        os.chdir(place)
        found[file] = _ran(Path(file))
    (top / _FOUND).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 50)  # as in conftest.py
    _main(sys.argv[1:])
