"""Write the results page from finished studies: `python experiments/write_results.py --help`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from straw_experiments.reproduce import STUDIES
from straw_experiments.runner.arguments import Parser
from straw_experiments.runner.command import fail


def main(argv: Sequence[str]) -> int:
    """Write the page that the command line names, with its figures beside it.

    Returns:
        The exit code: 0 written, 2 bad input, 130 stopped by Ctrl-C.
    """
    parser = Parser(
        prog="write_results.py",
        description="Write one page of all results, and its figures beside it, from"
        " FOLDER/STUDY/summary.json, FOLDER/STUDY/analysis.json and FOLDER/findings/SECTION.md,"
        " of which any may be missing.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of studies")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs", "results.md"),
        metavar="FILE",
        help="the page (%(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        write(arguments.folder, arguments.out)
    except (OSError, ValueError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        return 130
    return 0


def write(folder: Path, out: Path) -> None:
    """Write the page and its figures, and print its table.

    Args:
        folder: Of the studies.
        out: The page.

    Raises:
        ValueError: The folder holds no finished study, or a file that is no JSON.
        OSError: A file cannot be read or written.
    """
    studies = _by_study(folder, "summary.json")
    if not studies:
        raise ValueError(
            f"expected finished studies, found no {folder / 'STUDY' / 'summary.json'}. Run"
            " experiments/reproduce.py first"
        )
    from straw_experiments.pages import figures as results_figures
    from straw_experiments.pages import page as results_page
    from straw_experiments.pages import prediction as results_prediction
    from straw_experiments.runner import records

    predictions, languages = (
        {name: found for name, found in studies.items() if found.get("study", "").startswith(kind)}
        for kind in ("prediction", "character")
    )
    images = {name: found for name, found in studies.items() if "study" not in found}
    planned = [name for name, study in STUDIES.items() if study.script == "run.py"]
    known = {**dict.fromkeys(planned), **images}
    figures = {name: f"{out.stem}_{name}.png" for name in ("main", "rank", "weights")}
    files = {name: out.with_name(file) for name, file in figures.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = results_figures.draw(images, files)
    drawn += results_prediction.draw(predictions, files["weights"])
    text = results_page.page(
        known,
        predictions=predictions,
        languages=languages,
        findings={
            path.stem: path.read_text(encoding="utf-8")
            for path in sorted(folder.glob("findings/*.md"))
        },
        analyses=_by_study(folder, "analysis.json"),
        figures={name: figures[name] for name in drawn},
        pictures={
            path.parent.name: _pictures(path.parent, out, "analysis*.png")
            for path in folder.glob("*/analysis.json")
        }
        | {name: _pictures(folder / name, out, "*.png") for name in languages},
    )
    records.write(out, text)
    print(results_page.table(known))
    print(f"Page: {out}")


def _pictures(folder: Path, page: Path, pattern: str) -> list[str]:
    """List a study's pictures, as links from the page."""
    found = sorted(folder.glob(pattern))
    return [Path(os.path.relpath(picture, page.parent)).as_posix() for picture in found]


def _by_study(folder: Path, name: str) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob(f"*/{name}")):
        try:
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"cannot read {path}: {error}") from None
    return found
