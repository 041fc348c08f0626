"""Damage to every file that the data layer reads or keeps, and what it makes of it.

A scene is a folder of tiny data and a way to load them. A trial copies the folder, damages one file
in the copy, and loads. A user's own data that are damaged and can still be read are other data,
which is right if their name, which holds their sha256, is another one, too.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from straw_experiments import data
from straw_experiments.data import emnist, emnist_archive, glyphs, sources, text
from straw_experiments.faults.damage import damage
from straw_experiments.faults.outcomes import Kind, Outcome, Trial

_SIDE = 28
_COUNTS = {"train": 94, "test": 47}
_NOWHERE = "http://127.0.0.1:9"  # Refuses every connection at once.


class Loaded(NamedTuple):
    """What a scene loaded: the name that results repeat, and the sha256 of all that it holds."""

    name: str
    digest: str


class Scene(NamedTuple):
    """Data to damage.

    Attributes:
        make: Fills an empty folder.
        load: Loads what the folder holds.
        warm: Whether `load` runs once before the damage, so that what it keeps is damaged, too.
        gone: Paths below the folder, as patterns, that are deleted before the damage.
    """

    make: Callable[[Path], None]
    load: Callable[[Path], Loaded]
    warm: bool = False
    gone: tuple[str, ...] = ()


def prepare(place: Path) -> Kind:
    """Make and load every scene once."""
    return prepared(place, SCENES)


def prepared(place: Path, scenes: Mapping[str, Scene]) -> Kind:
    """Make and load some scenes once; a trial draws one, and damages a file of a copy of it."""
    with _tiny_world(place), contextlib.redirect_stdout(None):  # TFDS prints what it prepares
        made = {name: _prepare(place / name, scene) for name, scene in scenes.items()}

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del number
        name = list(scenes)[int(rng.integers(len(scenes)))]
        with _tiny_world(place):
            return _trial(rng, name, scenes[name], place / name, made[name])

    return trial


def _prepare(folder: Path, scene: Scene) -> Loaded:
    """Make a scene's folder, and load it once from a copy, or in place if it is warm."""
    folder.mkdir()
    scene.make(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _copy(folder) as copy:
            whole = scene.load(copy)
        if scene.warm:
            scene.load(folder)
    for pattern in scene.gone:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return whole


def _trial(rng: np.random.Generator, name: str, scene: Scene, folder: Path, whole: Loaded) -> Trial:
    with _copy(folder) as copy:
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        chosen = files[int(rng.integers(len(files)))]
        done = damage(rng, chosen, [file for file in files if file != chosen])
        outcome, said = _outcome(scene, copy, whole)
        if outcome is Outcome.REMADE:
            again, why = _outcome(scene, copy, whole)
            if again is not Outcome.IDENTICAL:
                outcome, said = Outcome.TRACEBACK, f"the second load: {again.value}: {why}"
        return Trial(f"{name}: {chosen.relative_to(copy)} ({done})", outcome, said)


def _outcome(scene: Scene, folder: Path, whole: Loaded) -> tuple[Outcome, str]:
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        stack.enter_context(contextlib.redirect_stdout(None))
        try:
            loaded = scene.load(folder)
        except ValueError as error:
            said = str(error)
            named = str(folder) in said or emnist_archive.WAYS_OUT in said
            return (Outcome.REFUSED if named and "\n" not in said else Outcome.TRACEBACK), said
        except Exception as error:
            return Outcome.TRACEBACK, f"{type(error).__name__}: {error}"
    said = "; ".join(str(each.message) for each in caught if "unofficial" not in str(each.message))
    if loaded.digest == whole.digest:
        return (Outcome.REMADE if "made anew" in said else Outcome.IDENTICAL), said
    return (Outcome.SILENT if loaded.name == whole.name else Outcome.RENAMED), said


@contextlib.contextmanager
def _copy(folder: Path) -> Iterator[Path]:
    """Copy a folder to one of the same name, which names own data."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        yield Path(shutil.copytree(folder, Path(parent, folder.name)))


# --- Tiny data ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _tiny_world(root: Path) -> Iterator[None]:
    """Let a tiny archive and texts pass for the official ones, on sites that do not answer."""
    official = root / "official.zip"
    if not official.exists():
        write_archive(official, seed=0)
    parts = {part: hashlib.sha256(_part(part).encode()).hexdigest() for part in text.PARTS}
    with (
        mock.patch.multiple(
            emnist,
            SIZE=official.stat().st_size,
            SHA256=hashlib.sha256(official.read_bytes()).hexdigest(),
            URL=f"{_NOWHERE}/gzip.zip",
        ),
        mock.patch.multiple(text, SHA256=parts, URL=_NOWHERE),
        mock.patch.multiple(glyphs, COUNTS={"train": 94, "test": 47}),
    ):
        yield


def _arrays(seed: int, classes: int = 47) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    arrays = {}
    for split, count in _COUNTS.items():
        shape = (count, _SIDE, _SIDE)
        arrays[f"{split}_images"] = generator.integers(0, 256, shape, np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)
    return arrays


def _idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return header + values.tobytes()


def write_archive(path: Path, seed: int) -> None:
    """Write a tiny archive of random images, laid out as EMNIST's."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in _arrays(seed).items():
            split, kind = name.split("_")
            member = f"gzip/emnist-balanced-{split}-{kind}-idx{values.ndim}-ubyte.gz"
            information = zipfile.ZipInfo(member)  # Its date is fixed.
            archive.writestr(information, gzip.compress(_idx(values), mtime=0))


def _write_idx(folder: Path, ending: str, place: str = ".") -> None:
    (folder / place).mkdir(exist_ok=True, parents=True)
    for name, values in _arrays(1, classes=10).items():
        split, kind = name.replace("test", "t10k").split("_")
        content = _idx(values)
        path = folder / place / f"{split}-{kind}-idx{values.ndim}-ubyte{ending}"
        path.write_bytes(gzip.compress(content, mtime=0) if ending else content)


def _write_images(folder: Path, suffix: str) -> None:
    from PIL import Image

    generator = np.random.default_rng(2)
    for index in range(12):
        path = folder / "birds" / "ab"[index % 2] / f"{index}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (12, 10, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def _write_npz(folder: Path, save: Callable[..., None]) -> None:
    save(folder / "own.npz", **_arrays(3), class_names=np.array([f"c{i}" for i in range(47)]))


@functools.cache
def _small_digits() -> type:
    """Define a TFDS set; TFDS lets a name be taken once."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class SmallDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.1")

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(_SIDE, _SIDE, 1)),
                "label": tfds.features.ClassLabel(names=["zero", "one", "two"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _: object) -> dict[str, Iterator[tuple[int, dict]]]:
            return {split: self._generate_examples(split) for split in _COUNTS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, object]]]:
            for index in range(_COUNTS[split] // 8):
                png = io.BytesIO()
                pixels = np.random.default_rng([index, len(split)]).integers(0, 256, (28, 28))
                Image.fromarray(pixels.astype(np.uint8)).save(png, "png")
                png.seek(0)
                yield index, {"image": png, "label": index % 3}

    return SmallDigits


def _prepare_tfds(folder: Path) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    downloads = tfds.download.DownloadConfig(try_download_gcs=False)
    _small_digits()(data_dir=folder, file_format="array_record").download_and_prepare(
        download_config=downloads
    )


def _part(part: str) -> str:
    return "".join(f" the {part} of a bank \n" for _ in range(20))


def _write_text(folder: Path) -> None:
    (folder / "own.txt").write_text(_part("own"))


def _write_treebank(folder: Path) -> None:
    for part in text.PARTS:
        (folder / f"ptb.{part}.txt").write_text(_part(part))


# --- Loading ------------------------------------------------------------------------------------


def _load_images(folder: Path, name: str, archive: str | None = None) -> Loaded:
    """Load a set by name, or, with "./" in front, data of one's own by path."""
    found: str | Path = folder / name if name.startswith("./") else name
    given = None if archive is None else folder / archive
    loaded = data.load(found, data_dir=folder, archive=given)
    return Loaded(loaded.name, sources.digest(*loaded[1:5], loaded.class_names))


def _load_unnamed(folder: Path, name: str) -> Loaded:
    """Load a set without its class names, of which TFDS keeps no check sum."""
    loaded = data.load(name, data_dir=folder)
    return Loaded(loaded.name, sources.digest(*loaded[1:5]))


def _load_text(folder: Path, name: str | None = None) -> Loaded:
    """Load a text; results repeat its sha256 beside its name."""
    path = None if name is None else str(folder / name)
    loaded = text.load(path, str(folder))
    digest = sources.digest(loaded.train, loaded.validation, loaded.test, (loaded.characters,))
    return Loaded(f"{loaded.name} {loaded.sha256()}", digest)


def _of(load: Callable[..., Loaded], *arguments: str) -> Callable[[Path], Loaded]:
    return lambda folder: load(folder, *arguments)


def _archive(name: str) -> Callable[[Path], None]:
    """An official archive, or another, as the file `name`."""
    return lambda folder: write_archive(folder / name, seed=int(name != "gzip.zip"))


_given, _official = _of(_load_images, "emnist", "given.zip"), _of(_load_images, "emnist")
SCENES = {
    "given archive": Scene(_archive("given.zip"), _given),
    "given archive and what is kept of it": Scene(_archive("given.zip"), _given, warm=True),
    "official archive and what is kept of it": Scene(_archive("gzip.zip"), _official, warm=True),
    "what is kept of the official archive": Scene(
        _archive("gzip.zip"), _official, warm=True, gone=("gzip.zip",)
    ),
    "what TFDS prepared of the official archive": Scene(
        _archive("gzip.zip"), _official, warm=True, gone=("gzip.zip", "straw_jax")
    ),
    "glyphs": Scene(lambda folder: None, _of(_load_images, "glyphs"), warm=True),
    "TFDS set": Scene(_prepare_tfds, _of(_load_unnamed, "small_digits")),
    "TFDS set and what is kept of it": Scene(
        _prepare_tfds, _of(_load_images, "small_digits"), warm=True
    ),
    "idx files, read before": Scene(
        lambda folder: _write_idx(folder, "", "mnist"), _of(_load_images, "mnist"), warm=True
    ),
    "idx.gz files, read before": Scene(
        lambda folder: _write_idx(folder, ".gz"), _of(_load_images, "mnist"), warm=True
    ),
    "own idx files": Scene(
        lambda folder: _write_idx(folder, "", "own"), _of(_load_images, "./own")
    ),
    "own idx.gz files": Scene(
        lambda folder: _write_idx(folder, ".gz", "own"), _of(_load_images, "./own")
    ),
    "own npz file": Scene(
        functools.partial(_write_npz, save=np.savez), _of(_load_images, "./own.npz")
    ),
    "own compressed npz file": Scene(
        functools.partial(_write_npz, save=np.savez_compressed), _of(_load_images, "./own.npz")
    ),
    "own PNG images": Scene(
        lambda folder: _write_images(folder, ".png"), _of(_load_images, "./birds")
    ),
    "own JPEG images": Scene(
        lambda folder: _write_images(folder, ".jpg"), _of(_load_images, "./birds")
    ),
    "own text": Scene(_write_text, _of(_load_text, "own.txt")),
    "Penn Treebank": Scene(_write_treebank, _of(_load_text)),
}
