"""The contenders: the article's, ours, and static controls of both, as pure functions."""

import bisect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from straw_experiments.image_classification.step import Model
from straw_experiments.runner.state import Variables
from straw_jax.costs import multiply_adds
from straw_jax.encoders import NormEncoder, RecursiveEncoder
from straw_jax.geometry import affine, resample
from straw_jax.hypernetwork import make_hypernetwork
from straw_jax.models import CNN, CompactCNN, Conv7, ResNet34, ViT, WideResNet
from straw_jax.pose import ANGLES as POSES
from straw_jax.pose import (
    Geometric,
    PoseEncoder,
    PoseRange,
    in_random_poses,
    make_geometric,
    pose_loss,
)
from straw_jax.straw import Base, Network, Straw, linen, make_straw

# An eye for angles, "geometric", and what it is measured by; and one for other poses, too.
_GEOMETRIC = (
    "compact_augmented",
    "compact_fan",
    "compact_context",
    "geometric_stn",
    "geometric_refined",
    "geometric",
    "geometric_affine",
)
NAMES = (
    "standalone",
    "wide_dense",
    "wide_compute",
    "wide",
    "straw",
    "resnet34",
    "compact_static",
    "compact_wide",
    "compact",
    *_GEOMETRIC,
    "conv7",
    "conv7_narrow",
    "conv7_generated",
    "wrn_16_1",
    "wrn_16_1_narrow",
    "wrn_16_1_generated",
    "wrn_40_2",
    "wrn_40_2_narrow",
    "wrn_40_2_generated",
)

Executor: TypeAlias = Literal["cnn", "vit"]
Encoder: TypeAlias = Literal["conv", "trm"]

# Where the CNN's dense layer is meant, or the compact executor, no other can take its place.
_OF_ANY_EXECUTOR = ("standalone", "wide", "straw", "resnet34")

ImageShape: TypeAlias = tuple[int, ...]
"""Height, width and channels."""

PoseLoss: TypeAlias = Callable[[Any, jax.Array, jax.Array], jax.Array]

_GREY: ImageShape = (28, 28, 1)
_STYLE = 32  # length of the style vector that is written beside a pose
_FAN = 15.0  # degrees from one rotation of the fan to the next
_ALL_POSES = POSES._replace(scale=1.4, shear=0.4, shift=0.1)


def contender(
    name: str,
    *,
    classes: int,
    rank: int,
    base: Base,
    executor: Executor = "cnn",
    encoder: Encoder = "conv",
    image: ImageShape = _GREY,
) -> Model:
    """Return one of the contenders.

    Args:
        name: "standalone" (the executor alone), "straw" or "resnet34", which are the article's;
            or a control, the executor alone at another size: "wide_dense" (its dense layer
            widened to STRAW's trained parameters), "wide_compute" and "wide" (all layers scaled
            by one factor, to STRAW's multiply-adds a sample and to its trained parameters); or
            "compact" (`compact_straw`), and of it "compact_static" (the executor alone) and
            "compact_wide" (all its layers widened to the trained parameters of "compact"); or
            "geometric" (`compact_geometric`), and what it is measured by: "compact_augmented", the
            executor alone, trained on labelled images that are turned; "compact_fan", the executor
            alone, tested with the mean of its predictions over a fan of rotations;
            "geometric_stn" and "geometric_refined", the same network, whose eye learns from labels
            alone (all of them of upright images), and from labels, too, both by all hypotheses
            where "geometric" learns by the likeliest; and "compact_context", whose eye learns as
            that of "geometric_refined", but writes low-rank updates; and "geometric_affine", like
            "geometric" with an eye for scale, shear and shift, too; or a network of the
            HyperNetworks paper, `Conv7` or `WideResNet` of a depth and a width, with kernels of its
            own; "_generated" has them written by one generator, and "_narrow", a control, has its
            own in so few channels that they have about as many parameters as that.
        classes: number of classes.
        rank: of STRAW's updates, which the controls follow.
        base: STRAW's, as in `make_straw`.
        executor: "cnn", the article's, or "vit", a small vision transformer; with this there are
            "standalone", "wide" (all its layers) and "straw" (on attention and MLPs).
        encoder: STRAW's, "conv", the convolutions that are usual with the executor, or "trm",
            `RecursiveEncoder`.
        image: shape of what is classified.

    Returns:
        The contender as pure functions.

    Raises:
        ValueError: if a name is unknown, or there is none such with this executor.
    """
    if encoder not in get_args(Encoder):
        raise ValueError(
            f"contender: expected an encoder of {', '.join(get_args(Encoder))}, got {encoder!r}."
        )
    if executor not in get_args(Executor) or (
        executor != "cnn" and name in NAMES and name not in _OF_ANY_EXECUTOR
    ):
        raise ValueError(
            f"contender: expected one of {', '.join(_OF_ANY_EXECUTOR)} with an executor of "
            f"{', '.join(get_args(Executor))}, got {name!r} with {executor!r}."
        )
    options: dict[str, Any] = {
        "classes": classes,
        "rank": rank,
        "base": base,
        "executor": executor,
        "encoder": encoder,
        "image": image,
    }
    if name in _GEOMETRIC:
        return _of_poses(name, classes, rank, base, image)
    if straw := straw_of(name, **options):
        return straw_model(straw)
    if name == "standalone":
        return flax_model(executor_of("straw", classes, executor))
    if name == "resnet34":
        return flax_model(ResNet34(classes))
    if name == "compact_static":
        return flax_model(CompactCNN(classes))
    if name.startswith(tuple(_GENERATED)) and name in NAMES:
        return _of_hypernetworks(name, classes, image)
    if name in NAMES:
        return _widened(name, **options)
    raise ValueError(f"contender: expected one of {', '.join(NAMES)}, got {name!r}.")


def straw_of(
    name: str,
    *,
    classes: int,
    rank: int,
    base: Base,
    executor: Executor = "cnn",
    encoder: Encoder = "conv",
    image: ImageShape = _GREY,
) -> Straw | None:
    """Return the STRAW that a contender is, or None where it is none; arguments as `contender`."""
    if name.startswith("geometric") and name in NAMES:
        return _geometric(name, classes, image).straw
    if name == "compact_context":
        return _context_straw(classes, rank, base, image)
    straws: dict[str, Callable[..., Straw]] = {
        "straw": vit_straw if executor == "vit" else article_straw,
        "compact": compact_straw,
    }
    if name not in straws:
        return None
    eye = RecursiveEncoder() if encoder == "trm" else None
    return straws[name](classes=classes, rank=rank, base=base, encoder=eye, image=image)


def executor_of(name: str, classes: int, executor: Executor = "cnn") -> nn.Module:
    """Return the executor of a contender that is a STRAW."""
    if name in ("compact", *_GEOMETRIC):
        return CompactCNN(classes)
    return ViT(classes) if executor == "vit" else CNN(classes)


def article_straw(
    *,
    classes: int,
    rank: int,
    base: Base,
    encoder: nn.Module | None = None,
    image: ImageShape = _GREY,
) -> Straw:
    """Return the article's STRAW: its generator, its CNN as executor, and an eye, usually its."""
    return make_straw(
        executor_of("straw", classes), _images(image), rank=rank, base=base, encoder=encoder
    )


def compact_straw(
    *,
    classes: int,
    rank: int = 4,
    base: Base = "trained",
    encoder: nn.Module | None = None,
    image: ImageShape = _GREY,
) -> Straw:
    """Return a STRAW of 342,702 parameters that learns from few images in few epochs.

    Its encoder is `NormEncoder()`, if none is given. To be trained as run.py's preset "compact" is:
    Adam,
    batches of 32, a learning rate of 0.004 with the schedule "cosine".
    """
    return make_straw(
        executor_of("compact", classes),
        _images(image),
        rank=rank,
        base=base,
        encoder=encoder or NormEncoder(),
        hidden=16,
    )


def compact_geometric(
    *, classes: int, poses: PoseRange = POSES, image: ImageShape = _GREY
) -> Geometric:
    """Return the compact executor with an eye that sees in which pose images are.

    To be trained as run.py's preset "geometric" is.

    Args:
        classes: number of classes.
        poses: that there are, by default angles up to 60 degrees.
        image: shape of what is classified.
    """
    return make_geometric(
        executor_of("compact", classes), _images(image), kernel="conv1/kernel", poses=poses
    )


def vit_straw(
    *,
    classes: int,
    rank: int = 4,
    base: Base = "trained",
    encoder: nn.Module | None = None,
    image: ImageShape = _GREY,
) -> Straw:
    """Return a STRAW that rewrites the attention and the MLPs of a small vision transformer.

    Its other leaves (convolutions, positions, norms, the last layer) keep their trained weights.
    Its eye is `NormEncoder()`, if none is given.
    """
    return make_straw(
        executor_of("straw", classes, "vit"),
        _images(image),
        rank={"block*/*/kernel": rank},
        base=base,
        encoder=encoder or NormEncoder(),
        hidden=16,
    )


def parameters(model: Model, image: ImageShape = _GREY) -> int:
    """Count a model's trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(model, image)["params"]))


def sample_cost(model: Model, image: ImageShape = _GREY) -> int:
    """Count the multiply-adds of one image's way through a model, without its gradient."""

    def logits(variables: Variables, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, None)[0]

    return multiply_adds(logits, _shapes(model, image), _images(image))


def straw_model(straw: Straw, unlabelled: PoseLoss | None = None) -> Model:
    """Return a STRAW as pure functions for the training loop.

    Args:
        straw: The model.
        unlabelled: What its eye learns from images, `(params, images, key) -> loss [b]`, if
            anything.
    """

    def init(key: jax.Array, images: jax.Array) -> Variables:
        del images  # shapes are known
        return {"params": straw.init(key)}

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        return straw.apply(variables["params"], images, **_mode(key)), {}

    if unlabelled is None:
        return Model(init, apply)
    return Model(init, apply, lambda variables, *rest: unlabelled(variables["params"], *rest))


def flax_model(module: Any) -> Model:
    """Return a Flax module, with or without state, as pure functions for the training loop."""

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        collections = [name for name in variables if name != "params"]
        if key is None or not collections:
            return module.apply(variables, images, **_mode(key)), {}
        return module.apply(variables, images, mutable=collections, **_mode(key))

    return Model(module.init, apply)


def _of_poses(name: str, classes: int, rank: int, base: Base, image: ImageShape) -> Model:
    """Return "geometric", or what it is measured by."""
    if name == "compact_augmented":
        return _augmented(flax_model(CompactCNN(classes)))
    if name == "compact_fan":
        return _fan(flax_model(CompactCNN(classes)))
    if name == "compact_context":
        eye = PoseEncoder(POSES, style=_STYLE)

        def context_loss(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
            return pose_loss(linen(eye), params["encoder"], images, POSES, key)

        return straw_model(_context_straw(classes, rank, base, image), context_loss)
    geometric = _geometric(name, classes, image)
    if name == "geometric_stn":
        return straw_model(geometric.straw)
    if name == "geometric_refined":
        return straw_model(geometric.straw, geometric.pose_loss)
    return _detached(geometric)


def _geometric(name: str, classes: int, image: ImageShape) -> Geometric:
    poses = _ALL_POSES if name == "geometric_affine" else POSES
    return compact_geometric(classes=classes, poses=poses, image=image)


def _detached(geometric: Geometric) -> Model:
    """Let an eye learn from images alone; in evaluation all hypotheses are asked."""

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        called = geometric.straw.apply if key is None else geometric.apply_detached
        return called(variables["params"], images, **_mode(key)), {}

    return straw_model(geometric.straw, geometric.pose_loss)._replace(apply=apply)


def _context_straw(classes: int, rank: int, base: Base, image: ImageShape) -> Straw:
    """Return the compact STRAW with an eye for poses, whose style vector writes its updates."""
    eye = linen(PoseEncoder(POSES, style=_STYLE))
    encoder = Network(eye.init, lambda params, x: eye.apply(params, x).style)
    return make_straw(
        executor_of("compact", classes),
        _images(image),
        rank=rank,
        base=base,
        encoder=encoder,
        hidden=16,
    )


def _augmented(model: Model) -> Model:
    """Train a model on labelled images that are turned as an eye's are."""

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        if key is not None:
            images, _ = in_random_poses(images, POSES, jax.random.fold_in(key, 1))
        return model.apply(variables, images, key)

    return Model(model.init, apply)


def _fan(model: Model) -> Model:
    """Test a model with the mean of its probabilities over a fan of rotations."""
    count = 2 * round(POSES.degrees / _FAN) + 1
    matrices = affine(jnp.linspace(-POSES.degrees, POSES.degrees, count))

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        if key is not None:
            return model.apply(variables, images, key)

        def turned(matrix: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(model.apply(variables, resample(images, matrix), None)[0])

        return jax.nn.logsumexp(jax.lax.map(turned, matrices), axis=0) - jnp.log(count), {}

    return Model(model.init, apply)


def _mode(key: jax.Array | None) -> dict[str, Any]:
    return {} if key is None else {"train": True, "rngs": {"dropout": key}}


def _widened(
    name: str, *, classes: int, executor: Executor, image: ImageShape, **options: Any
) -> Model:
    """Widen an executor until it is as near to its STRAW in a count as whole widths allow."""
    widened = "compact" if name == "compact_wide" else "straw"
    straw = contender(widened, classes=classes, executor=executor, image=image, **options)

    def static(width: int) -> Model:
        """Make it with a last hidden layer, or a last convolution, of this width."""
        if executor == "vit":
            heads = ViT().heads
            return flax_model(ViT(classes, width=heads * max(round(width / heads), 1)))
        if name == "compact_wide":
            stages = tuple((8 * max(round(width / part / 8), 1),) for part in (4, 2, 1))
            return flax_model(CompactCNN(classes, stages))
        if name == "wide_dense":
            return flax_model(CNN(classes, hidden=width))
        channels = round(width / 4), round(width / 2)
        return flax_model(CNN(classes, channels=channels, hidden=width))

    count = partial(sample_cost if name == "wide_compute" else parameters, image=image)
    target = count(straw)
    widths = range(4, 100_000)
    above = bisect.bisect_left(widths, target, key=lambda width: count(static(width)))
    nearest = min(
        widths[above - 1 : above + 1], key=lambda width: abs(count(static(width)) - target)
    )
    return static(nearest)


class _Generated(NamedTuple):
    """A network of the HyperNetworks paper.

    Attributes:
        make: it, for a number of classes and in any channels.
        narrow: channels in which its own kernels have about as many parameters as the generator.
        kernels: which are generated.
        size: of an embedding, and of the vector from which an input channel's weights are written.
    """

    make: Callable[..., nn.Module]
    narrow: Any
    kernels: str
    size: int


_GENERATED = {
    "conv7": _Generated(Conv7, (9, 9), "conv2/kernel", 4),
    "wrn_16_1": _Generated(partial(WideResNet, depth=16), 4, "group*_conv*/kernel", 16),
    "wrn_40_2": _Generated(partial(WideResNet, depth=40, width=2), 4, "group*_conv*/kernel", 64),
}


def _of_hypernetworks(name: str, classes: int, image: ImageShape) -> Model:
    """Return a network of the HyperNetworks paper, as `contender` tells."""
    form = next((form for form in ("_narrow", "_generated") if name.endswith(form)), "")
    make, narrow, kernels, size = _GENERATED[name.removesuffix(form)]
    if form == "_narrow":
        return flax_model(make(classes, channels=narrow))
    if not form:
        return flax_model(make(classes))
    generated = make_hypernetwork(
        make(classes), _images(image), [kernels], chunk=(16, 16), embedding=size, hidden=size
    )

    def init(key: jax.Array, images: jax.Array) -> Variables:
        return {"params": generated.init(key, images)}

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        del key  # these networks draw nothing
        return generated.apply(variables["params"], images), {}

    return Model(init, apply)


def _shapes(model: Model, image: ImageShape) -> Variables:
    return jax.eval_shape(model.init, jax.random.key(0), _images(image))


def _images(image: ImageShape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image), jnp.float32)
