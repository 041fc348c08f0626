"""A TFDS builder of EMNIST balanced that keeps the archive's order and needs no TensorFlow.

Importing this module imports TFDS.
"""

import dataclasses
import shutil
import warnings
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from straw_experiments.data import emnist_archive, sources
from straw_experiments.data.cache import Arrays
from straw_experiments.data.reading import reason
from straw_experiments.data.tfds_sets import read_columns

_DIGEST = "sha256"  # In the prepared data's metadata: of all arrays, and of their archive's sha256.


@dataclasses.dataclass(kw_only=True)
class ArchiveConfig(tfds.core.BuilderConfig):
    """Says which archive to prepare.

    Its name is part of the prepared data's path, so that no two archives share a folder.

    Attributes:
        source: The open archive, or the address from which TFDS downloads it.
        sha256: Of the archive.
    """

    source: BufferedReader | str = ""
    sha256: str = ""


class EmnistBalanced(tfds.core.GeneratorBasedBuilder):
    """Upright images with their labels and their positions in the archive's files."""

    VERSION = tfds.core.Version(emnist_archive.VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(
            shape=(28, 28, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        features = {
            "image": image,
            "label": tfds.features.ClassLabel(names=emnist_archive.CLASS_NAMES),
            "index": tfds.features.Scalar(np.int64),  # TFDS shuffles: this undoes it.
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="EMNIST balanced: 47 classes of handwritten digits and letters.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        config = self.builder_config
        if isinstance(config.source, str):
            with emnist_archive.open_archive(Path(dl_manager.download(config.source))) as file:
                arrays = emnist_archive.read(file, config.sha256)
        else:
            arrays = emnist_archive.read(config.source, config.sha256)
        self.info.metadata[_DIGEST] = sources.digest(*arrays.values(), (config.sha256,))
        return {split: self._generate_examples(arrays, split) for split in emnist_archive.SPLITS}

    def _generate_examples(
        self, arrays: Arrays, split: str
    ) -> Iterator[tuple[int, dict[str, object]]]:
        pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
        for index, (image, label) in enumerate(pairs):
            yield index, {"image": image, "label": int(label), "index": index}


def read(folder: Path, sha256: str) -> Arrays | None:
    """Read prepared data in the archive's order.

    Args:
        folder: DATA_DIR/emnist_balanced/NAME/VERSION: one name per archive.
        sha256: Of the archive.

    Returns:
        "{train,test}_images" uint8 `[n, 28, 28, 1]`, "{train,test}_labels" int32 `[n]`; None if
        nothing was prepared or, with a warning, if it is damaged or of a version without a sha256.
    """
    if not folder.exists():
        return None
    try:
        builder = _builder(folder)
        arrays = {}
        for split in emnist_archive.SPLITS:
            columns = read_columns(builder.as_data_source(split))
            order = np.argsort(columns["index"])
            arrays[f"{split}_images"] = columns["image"][order]
            arrays[f"{split}_labels"] = columns["label"][order].astype(np.int32)
        if sources.digest(*arrays.values(), (sha256,)) != builder.info.metadata[_DIGEST]:
            raise ValueError("its data are not those that were prepared")
    except Exception as error:  # TFDS and its readers raise anything for damaged files.
        warnings.warn(f"{folder} cannot be used and is made anew: {reason(error)}", stacklevel=2)
        return None
    return arrays


def prepare(folder: Path, source: BufferedReader | str, sha256: str) -> Arrays:
    """Prepare an archive's data in place of any that are there, and read them.

    Args:
        folder: As for `read`.
        source: The open archive, or the address of the official one, which TFDS downloads and
            compares with its check sum.
        sha256: Of the archive.

    Returns:
        As `read`.

    Raises:
        ValueError: The archive or the download is damaged, or the data cannot be stored.
    """
    tfds.disable_progress_bar()  # Several, of half a minute in all, with long paths.
    downloads = tfds.download.DownloadConfig(
        try_download_gcs=False, force_checksums_validation=True
    )
    failure = None
    try:
        if folder.exists():
            shutil.rmtree(folder)
        _builder(folder, source, sha256).download_and_prepare(download_config=downloads)
    except (OSError, DownloadError, NonMatchingChecksumError) as error:
        failure = error  # Unless another process was quicker.
    arrays = read(folder, sha256)
    if arrays is None:
        said = f"{folder} cannot be read" if failure is None else reason(failure)
        raise ValueError(f"EMNIST: {said}. {emnist_archive.WAYS_OUT}") from failure
    return arrays


def _builder(folder: Path, source: BufferedReader | str = "", sha256: str = "") -> EmnistBalanced:
    absl.logging.set_verbosity(absl.logging.ERROR)  # It warns of every custom configuration.
    config = ArchiveConfig(name=folder.parent.name, source=source, sha256=sha256)
    return EmnistBalanced(data_dir=folder.parents[2], config=config, file_format="array_record")
