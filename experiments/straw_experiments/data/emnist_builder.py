"""A TFDS builder of EMNIST balanced that keeps the archive's order and needs no TensorFlow.

Importing this module imports TFDS.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from straw_experiments.data import emnist_archive
from straw_experiments.data.cache import Arrays
from straw_experiments.data.tfds_sets import read_columns


@dataclasses.dataclass(kw_only=True)
class ArchiveConfig(tfds.core.BuilderConfig):
    """Says which archive to prepare.

    Its name is part of the prepared data's path, so that no two archives share a folder.

    Attributes:
        source: The archive's file, or the address from which TFDS downloads it.
    """

    source: Path | str = ""


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
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        source = self.builder_config.source
        archive = source if isinstance(source, Path) else Path(dl_manager.download(source))
        return {split: self._generate_examples(archive, split) for split in emnist_archive.SPLITS}

    def _generate_examples(
        self, archive: Path, split: str
    ) -> Iterator[tuple[int, dict[str, object]]]:
        images, labels = emnist_archive.read_split(archive, split)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label), "index": index}


def load(data_dir: Path, name: str, source: Path | str) -> Arrays:
    """Read an archive's data in the archive's order, and prepare them first if need be.

    Args:
        data_dir: TFDS's folder.
        name: Names the prepared data: one name per archive.
        source: The archive's file, or the address of the official one, which TFDS downloads and
            compares with its check sum.

    Returns:
        "{train,test}_images" uint8 [n, 28, 28, 1], "{train,test}_labels" int32 [n].

    Raises:
        ValueError: if the archive or the download is damaged.
    """
    tfds.disable_progress_bar()  # Several, of half a minute in all, with long paths.
    absl.logging.set_verbosity(absl.logging.ERROR)  # It warns of every custom configuration.
    config = ArchiveConfig(name=name, source=source)

    def found() -> EmnistBalanced:
        return EmnistBalanced(data_dir=data_dir, config=config, file_format="array_record")

    builder = found()
    downloads = tfds.download.DownloadConfig(
        try_download_gcs=False, force_checksums_validation=True
    )
    try:
        builder.download_and_prepare(download_config=downloads)
    except (OSError, DownloadError, NonMatchingChecksumError) as error:
        builder = found()
        if not builder.is_prepared():  # by another process that was quicker
            raise ValueError(f"EMNIST: {error}. {emnist_archive.WAYS_OUT}") from error
    arrays = {}
    for split in emnist_archive.SPLITS:
        columns = read_columns(builder.as_data_source(split))
        order = np.argsort(columns["index"])
        arrays[f"{split}_images"] = columns["image"][order]
        arrays[f"{split}_labels"] = columns["label"][order].astype(np.int32)
    return arrays
