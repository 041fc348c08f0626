"""A data set of images in memory."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Hold images and labels for training and for the test.

    `load` returns one. Arrays of your own make one, too; nothing is checked or copied then. The
    test set must have the classes and the image shape of the training set, and the models need
    images of at least 8 x 8 pixels.

    Attributes:
        name: Says truly what the images are; every table, figure and report repeats it, and
            `run.py --resume` compares it.
        train_images: uint8 `[n, height, width, channels]`, 1 channel (grey) or 3 (RGB). Characters
            are upright, and bright on black.
        train_labels: int32 `[n]`, from 0 to one less than the number of classes.
        test_images: uint8 `[m, height, width, channels]`.
        test_labels: int32 `[m]`.
        class_names: The name of each label.

    Example:
        Bright bars, lying (class 0) or standing (class 1), and their transformed test images:

        >>> import numpy as np
        >>> from straw_experiments import data
        >>> images = np.zeros((60, 16, 16, 1), np.uint8)
        >>> images[0::2, 7:9, :] = 255
        >>> images[1::2, :, 7:9] = 255
        >>> labels = np.arange(60, dtype=np.int32) % 2
        >>> bars = data.Dataset(
        ...     name="bars, lying and standing",
        ...     train_images=images[:40],
        ...     train_labels=labels[:40],
        ...     test_images=images[40:],
        ...     test_labels=labels[40:],
        ...     class_names=("lying", "standing"),
        ... )
        >>> bars.class_names[bars.train_labels[3]]
        'standing'
        >>> data.variants(bars.test_images)["rotated"].shape
        (20, 16, 16, 1)
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
