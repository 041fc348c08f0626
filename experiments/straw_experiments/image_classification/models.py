"""The models that `run.py` trains: one entry each, which every command, table and figure reads.

To add a model, add its entry to `MODELS`, here or from your own code with `MODELS.register`. JAX is
imported when a model is built, so that the command line lists the models without waiting for it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from straw_experiments.runner.precision import USUAL, Precision
from straw_experiments.runner.registry import Entry, Registry, lazily

if TYPE_CHECKING:
    from straw_experiments.image_classification.step import Model
    from straw_jax.straw import Base, Straw


class Sizes(NamedTuple):
    """What a model is built for.

    Attributes:
        classes: Number of classes.
        rank: Of STRAW's updates, which the controls follow.
        base: STRAW's, as in `make_straw`.
        executor: "cnn", the article's, or "vit", a small vision transformer.
        encoder: STRAW's, "conv", the executor's usual convolutions, or "trm", `RecursiveEncoder`.
        image: Height, width and channels of an image.
        precision: Dtype in which the model computes, as Flax means it: its parameters are float32.
    """

    classes: int
    rank: int
    base: "Base"
    executor: str = "cnn"
    encoder: str = "conv"
    image: tuple[int, ...] = (28, 28, 1)
    precision: Precision = USUAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModel(Entry):
    """A model that classifies images.

    Attributes:
        build: `Sizes` to a `step.Model`: pure functions for the training loop.
        straw: `Sizes` to the `Straw` that it is, whose style vectors the controls exchange; None
            where it writes no weights.
        executor: `Sizes` to the Flax module that its STRAW modulates.
        executors: With which `Sizes.executor` it can be built.
        takes_encoder: Whether `Sizes.encoder` matters.
        presets: Named recipes that train it.
        weights_a_rank: By `Sizes.executor`, about how many trained weights each rank adds with
            images of 8 x 8 pixels, and never fewer; with larger images there are more.
    """

    straw: Callable[[Sizes], "Straw"] | None = None
    executor: Callable[[Sizes], Any] | None = None
    executors: tuple[str, ...] = ("cnn",)
    takes_encoder: bool = False
    presets: tuple[str, ...] = ()
    weights_a_rank: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _network(function: str) -> Callable[..., Any]:
    return lazily("straw_experiments.image_classification.networks", function)


_BOTH = ("cnn", "vit")
_POSES = ("geometric",)
_A_RANK = {"cnn": 115_000, "vit": 70_000}
_A_COMPACT_RANK = {"cnn": 20_000}


def _of_hypernetworks(
    network: str, title: str, label: str
) -> tuple[ImageModel, ImageModel, ImageModel]:
    """A network of the HyperNetworks paper: with free kernels, with few, and generated ones."""
    build = _network("of_hypernetworks")
    forms = {
        "": ("#0077BB", f"{title}, of the HyperNetworks paper"),
        "_narrow": ("#88BBDD", f"{label} with about as few parameters as {network}_generated"),
        "_generated": ("#CC3311", f"{label} with kernels that one generator writes"),
    }
    plain, narrow, generated = (
        ImageModel(
            name=network + form,
            build=lambda sizes, name=network + form: build(name, sizes),
            colour=colour,
            help=text,
        )
        for form, (colour, text) in forms.items()
    )
    return plain, narrow, generated


MODELS: Registry[ImageModel] = Registry(
    [
        ImageModel(
            name="standalone",
            build=_network("standalone"),
            colour="#0077BB",
            help="the executor alone",
            executors=_BOTH,
        ),
        ImageModel(
            name="wide_dense",
            build=_network("wide_dense"),
            colour="#33BBEE",
            help="control, standalone with its dense layer widened to STRAW's parameters",
            weights_a_rank=_A_RANK,
        ),
        ImageModel(
            name="wide_compute",
            build=_network("wide_compute"),
            colour="#88CCAA",
            help="control, standalone with all layers scaled to STRAW's multiply-adds",
            weights_a_rank={"cnn": 19_000},
        ),
        ImageModel(
            name="wide",
            build=_network("wide"),
            colour="#114477",
            help="control, standalone with all layers scaled to STRAW's parameters",
            executors=_BOTH,
            weights_a_rank=_A_RANK,
        ),
        ImageModel(
            name="straw",
            build=_network("straw"),
            label="STRAW",
            colour="#EE7733",
            help="the article's STRAW, or with --executor vit a transformer's",
            straw=_network("straw_of_executor"),
            executor=_network("executor"),
            executors=_BOTH,
            takes_encoder=True,
            weights_a_rank=_A_RANK,
        ),
        ImageModel(
            name="resnet34",
            build=_network("resnet34"),
            label="ResNet-34",
            colour="#555555",
            help="the article's ResNet-34",
        ),
        ImageModel(
            name="compact_static",
            build=_network("compact_static"),
            colour="#88BBDD",
            help="the executor of compact alone",
            presets=("compact", "geometric"),
        ),
        ImageModel(
            name="compact_wide",
            build=_network("compact_wide"),
            colour="#446688",
            help="control, compact_static widened to the parameters of compact",
            presets=("compact",),
            weights_a_rank=_A_COMPACT_RANK,
        ),
        ImageModel(
            name="compact",
            build=_network("compact"),
            label="compact STRAW",
            colour="#CC3311",
            help="a small STRAW",
            straw=_network("straw_of_compact"),
            executor=_network("compact_executor"),
            takes_encoder=True,
            presets=("compact",),
            weights_a_rank=_A_COMPACT_RANK,
        ),
        ImageModel(
            name="compact_shared",
            build=_network("compact_shared"),
            colour="#EE99AA",
            help="compact with low-rank updates in bases that all samples share",
            straw=_network("straw_of_compact_shared"),
            executor=_network("compact_executor"),
            weights_a_rank={"cnn": 1_200},
        ),
        ImageModel(
            name="compact_gain",
            build=_network("compact_gain"),
            colour="#997700",
            help="compact with gains of outputs in place of low-rank updates",
            straw=_network("straw_of_compact_gain"),
            executor=_network("compact_executor"),
        ),
        ImageModel(
            name="compact_augmented",
            build=_network("compact_augmented"),
            colour="#AA4499",
            help="baseline, compact_static trained on labelled, randomly rotated images",
            presets=_POSES,
        ),
        ImageModel(
            name="compact_fan",
            build=_network("compact_fan"),
            colour="#999933",
            help="baseline, compact_static tested with the mean over nine rotations of an image",
            presets=_POSES,
        ),
        ImageModel(
            name="compact_context",
            build=_network("compact_context"),
            colour="#DDAA33",
            help="baseline, a pose encoder whose style vector writes low-rank updates",
            straw=_network("straw_of_context"),
            executor=_network("compact_executor"),
            presets=_POSES,
            weights_a_rank=_A_COMPACT_RANK,
        ),
        ImageModel(
            name="geometric_stn",
            build=_network("geometric_stn"),
            colour="#BBBBBB",
            help="baseline, geometric whose pose encoder learns from labels alone (a spatial"
            " transformer)",
            straw=_network("straw_of_angles"),
            executor=_network("compact_executor"),
            presets=_POSES,
        ),
        ImageModel(
            name="geometric_refined",
            build=_network("geometric_refined"),
            colour="#66CC99",
            help="geometric whose pose encoder learns from labels, too",
            straw=_network("straw_of_angles"),
            executor=_network("compact_executor"),
            presets=_POSES,
        ),
        ImageModel(
            name="geometric",
            build=_network("geometric"),
            colour="#007755",
            help="the compact executor, whose first kernel a self-supervised pose encoder rotates",
            straw=_network("straw_of_angles"),
            executor=_network("compact_executor"),
            presets=_POSES,
        ),
        ImageModel(
            name="geometric_affine",
            build=_network("geometric_affine"),
            colour="#5500AA",
            help="geometric with scale, shear and shift beside the angle",
            straw=_network("straw_of_affine_poses"),
            executor=_network("compact_executor"),
            presets=_POSES,
        ),
        *_of_hypernetworks("conv7", "a network for MNIST", "conv7"),
        *_of_hypernetworks("wrn_16_1", "a wide residual network of 16 layers", "wrn_16_1"),
        *_of_hypernetworks("wrn_40_2", "one of 40 layers, twice as wide", "wrn_40_2"),
    ]
)


def build_model(name: str, **sizes: Any) -> "Model":
    """Build a registered model.

    Args:
        name: In `MODELS`.
        sizes: The fields of `Sizes`.

    Returns:
        The model as pure functions.

    Raises:
        ValueError: The name is unknown, or the model cannot have this executor or encoder.
    """
    chosen = Sizes(**sizes)
    _check(name, chosen)
    model: Model = MODELS[name].build(chosen)
    return model


def straw_of(name: str, **sizes: Any) -> "Straw | None":
    """Return the STRAW that a registered model is, or None where it is none.

    Args:
        name: In `MODELS`.
        sizes: The fields of `Sizes`.

    Raises:
        ValueError: As for `build_model`.
    """
    chosen = Sizes(**sizes)
    _check(name, chosen)
    make = MODELS[name].straw
    return None if make is None else make(chosen)


def executor_of(name: str, **sizes: Any) -> Any:
    """Return the Flax module that a registered STRAW modulates; arguments as `build_model`."""
    make = MODELS[name].executor
    if make is None:
        raise ValueError(f"executor_of: {name} writes no weights of an executor")
    return make(Sizes(**sizes))


def _check(name: str, sizes: Sizes) -> None:
    MODELS.check("build_model", [name])
    if sizes.encoder not in ("conv", "trm"):
        raise ValueError(f"build_model: expected an encoder of conv, trm, got {sizes.encoder!r}.")
    if sizes.executor not in MODELS[name].executors:
        fitting = [other for other, model in MODELS.items() if sizes.executor in model.executors]
        raise ValueError(
            f"build_model: expected one of {', '.join(fitting)} with an executor of cnn, vit, got"
            f" {name!r} with {sizes.executor!r}."
        )
