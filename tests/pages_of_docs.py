"""The pages that a reader sees, and how their blocks are run."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PYTHONPATH = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "experiments")])}
PAGES = [README, *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("guides/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the contents of a page's blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the commands of a page's bash blocks, one by one."""
    lines = "".join(blocks(page, "bash")).splitlines()
    return [command for line in lines for command in line.split(" && ")]


def run(words: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with some words."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **PYTHONPATH, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
