"""Write the pages of results: `python experiments/write_results.py --help`."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from straw_experiments.configs import STUDIES
from straw_experiments.runner import records
from straw_experiments.runner.command import fail, interruptible, program
from straw_experiments.runner.settings import Parser

_PACKAGED = Path(__file__).with_name("templates")  # in an installed package
_CHECKOUT = Path(__file__).parents[2] / "results" / "pages"
TEMPLATES = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def main(argv: Sequence[str]) -> int:
    """Write the pages that the command line names.

    Returns:
        The exit code: 0 written, 1 a file failed, 2 bad input, 128 + N stopped by signal N.
    """
    parser = Parser(
        prog=program("write-results"),
        description="Write the pages of results, and their pictures, from FOLDER/STUDY/summary.json"
        " and FOLDER/STUDY/analysis.json, of which any may be missing.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of studies")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs", "results"),
        metavar="DIR",
        help="folder for the pages (%(default)s)",
    )
    arguments = parser.parse_args(argv)
    return interruptible(lambda _: _write(arguments.folder, arguments.out), resumes=True)


def _write(folder: Path, out: Path) -> int:
    try:
        write(folder, out)
    except ValueError as error:
        return fail(error, 2)
    return 0


def write(folder: Path, out: Path, templates: Path = TEMPLATES) -> None:
    """Write the pages and their pictures, and print a table of accuracies.

    Args:
        folder: Of the studies.
        out: Folder for the pages.
        templates: As `render` takes them.

    Raises:
        ValueError: The folder holds no finished study, or a damaged file, or a page asks for a
            figure that is not there.
        OSError: A file cannot be read or written.
    """
    from straw_experiments.pages import stored

    try:
        results = stored.read(folder)
    except records.RecordError as error:
        raise ValueError(
            f"{error}. Give its study's command again, with --resume, and this one"
        ) from None
    if not results.summaries:
        raise ValueError(
            f"expected finished studies, found no {folder / 'STUDY' / 'summary.json'}. Run"
            " experiments/reproduce.py first"
        )
    from straw_experiments.pages import figures, images, render

    drawings = figures.drawings(results)
    found = sorted([*folder.glob("*/*_poses.png"), *folder.glob("fields/images.png")])
    copies = {f"{path.parent.name}_{path.name}": path for path in found}
    for path in copies.values():
        known = results.analyses.get(path.parent.name, {}).get("files", {}).get(path.name)
        if known not in (None, records.file_checksum(path)):
            raise ValueError(f"{path} is damaged: run experiments/analyse.py {path.parent} again")
    pages = render.render(
        results,
        templates,
        pictures={*drawings, *copies},
        planned=STUDIES,
        borrowed=folder.resolve() != templates.parent.resolve(),
    )
    run_py = [name for name, study in STUDIES.items() if study.command == "run"]
    table = images.terminal_table(results, run_py)  # before the first file: it may lack a figure
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in drawings.items():
        draw(out / name)
    for name, path in copies.items():
        shutil.copyfile(path, out / name)
    for name, text in pages.items():
        records.write(out / name, text)
    print(table)
    print(f"Pages: {out}")
