"""The published studies, a file each: its header says command, device, time and result."""

import importlib

from straw_experiments.configs.published import Published

_FILES = (  # in the order in which they run: the quick ones first
    "set2",
    "set2_trained",
    "preset2",
    "kinds2",
    "set3",
    "set3_trained",
    "preset3",
    "geometry3",
    "trm2",
    "vit2",
    "weights_mean",
    "weights_attention",
    "weights_linear",
    "weights_embedding",
    "weights_adam",
    "outputs",
    "tables",
    "static_wrn",
    "ranks",
    "ranks_trained",
    "set2_wide",
    "set2_resnet34",
    "geometry1",
    "set1",
    "set3_resnet34",
    "set1_resnet34",
    "preset1",
    # These need data of their own, and end it all where there are none.
    "static_mnist",
    "fields",
    "characters",
    "characters_large",
    "documents",
    "necessity",
)

CARD = ("set1", "set3_trained", "preset1", "set1_resnet34", "set3_resnet34", "characters_large")
"""What a GPU does in minutes and a CPU in hours or days; what is wanted most comes first."""

STUDIES: dict[str, Published] = {
    name: study
    for file in _FILES
    for name, study in importlib.import_module(f"{__name__}.{file}").STUDIES.items()
}
"""Every published study by name."""
