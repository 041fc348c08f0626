"""The networks behind `models`: the article's, our own, and static controls of both."""

import bisect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from straw_experiments.image_classification.models import Sizes
from straw_experiments.image_classification.step import Model
from straw_experiments.runner import state
from straw_experiments.runner.precision import module_dtype
from straw_experiments.runner.state import Variables
from straw_jax.costs import multiply_adds
from straw_jax.encoders import NormEncoder, RecursiveEncoder
from straw_jax.geometry import affine, resample
from straw_jax.hypernetwork import make_hypernetwork
from straw_jax.kinds import Gain, Kind, SharedLowRank, Whole
from straw_jax.models import CNN, CompactCNN, Conv7, ResNet34, ViT, WideResNet
from straw_jax.network import Network, linen
from straw_jax.pose import ANGLES as POSES
from straw_jax.pose import (
    Geometric,
    PoseEncoder,
    PoseRange,
    in_random_poses,
    make_geometric,
    pose_loss,
)
from straw_jax.straw import Base, Straw, make_straw

ImageShape: TypeAlias = tuple[int, ...]
"""Height, width and channels."""

PoseLoss: TypeAlias = Callable[[Any, jax.Array, jax.Array], jax.Array]

_GREY: ImageShape = (28, 28, 1)
_STYLE = 32  # length of the style vector that is written beside a pose
_ROTATIONS = 15.0  # degrees from one rotation to the next, of those that are averaged
_WIDTHS = range(4, 100_000)  # of controls
_ALL_POSES = POSES._replace(scale=1.4, shear=0.4, shift=0.1)


def executor(sizes: Sizes) -> nn.Module:
    """Return the executor of the article's STRAW, or a small vision transformer."""
    make = ViT if sizes.executor == "vit" else CNN
    return make(sizes.classes, dtype=module_dtype(sizes.precision))


def compact_executor(sizes: Sizes) -> nn.Module:
    """Return the executor of the compact STRAW, and of all models of poses."""
    return CompactCNN(sizes.classes, dtype=module_dtype(sizes.precision))


def standalone(sizes: Sizes) -> Model:
    """Return the executor alone."""
    return flax_model(executor(sizes))


def resnet34(sizes: Sizes) -> Model:
    """Return the article's ResNet-34."""
    return flax_model(ResNet34(sizes.classes, dtype=module_dtype(sizes.precision)))


def compact_static(sizes: Sizes) -> Model:
    """Return the compact executor alone."""
    return flax_model(compact_executor(sizes))


def straw_of_executor(sizes: Sizes) -> Straw:
    """Return the article's STRAW, or that of a vision transformer."""
    make: Callable[..., Straw] = vit_straw if sizes.executor == "vit" else article_straw
    return make(**_options(sizes))


def straw_of_compact(sizes: Sizes) -> Straw:
    """Return the compact STRAW."""
    return compact_straw(**_options(sizes))


def straw_of_compact_shared(sizes: Sizes) -> Straw:
    """Return the compact STRAW whose kernels are updated in bases that all samples share."""
    return _compact_of_kind(sizes, SharedLowRank(sizes.rank))


def straw_of_compact_gain(sizes: Sizes) -> Straw:
    """Return the compact STRAW whose kernels are updated by gains of their outputs."""
    return _compact_of_kind(sizes, Gain())


def _compact_of_kind(sizes: Sizes, kind: Kind) -> Straw:
    return make_straw(
        compact_executor(sizes),
        _images(sizes.image),
        updates={"*kernel": kind, "*": Whole()},
        base="trained",
        encoder=NormEncoder(dtype=module_dtype(sizes.precision)),
        hidden=16,
        start="article",
        dtype=module_dtype(sizes.precision),
    )


def straw(sizes: Sizes) -> Model:
    """Return `straw_of_executor` as a model."""
    return straw_model(straw_of_executor(sizes))


def compact(sizes: Sizes) -> Model:
    """Return `straw_of_compact` as a model."""
    return straw_model(straw_of_compact(sizes))


def compact_shared(sizes: Sizes) -> Model:
    """Return `straw_of_compact_shared` as a model."""
    return straw_model(straw_of_compact_shared(sizes))


def compact_gain(sizes: Sizes) -> Model:
    """Return `straw_of_compact_gain` as a model."""
    return straw_model(straw_of_compact_gain(sizes))


def _options(sizes: Sizes) -> dict[str, Any]:
    dtype = module_dtype(sizes.precision)
    return {
        "classes": sizes.classes,
        "rank": sizes.rank,
        "base": sizes.base,
        "encoder": RecursiveEncoder(dtype=dtype) if sizes.encoder == "trm" else None,
        "image": sizes.image,
        "dtype": dtype,
    }


def article_straw(
    *,
    classes: int,
    rank: int,
    base: Base,
    encoder: nn.Module | None = None,
    image: ImageShape = _GREY,
    dtype: DTypeLike | None = None,
) -> Straw:
    """Return the article's STRAW: its generator and executor, and by default its encoder."""
    executor = CNN(classes, dtype=dtype)
    return make_straw(
        executor,
        _images(image),
        rank=rank,
        base=base,
        encoder=encoder,
        start="article",
        dtype=dtype,
    )


def compact_straw(
    *,
    classes: int,
    rank: int = 4,
    base: Base = "trained",
    encoder: nn.Module | None = None,
    image: ImageShape = _GREY,
    dtype: DTypeLike | None = None,
) -> Straw:
    """Return a STRAW of 342,702 parameters that learns from few images in few epochs.

    Its encoder is `NormEncoder()`, if none is given. To be trained as run.py's preset "compact" is:
    Adam,
    batches of 32, a learning rate of 0.004 with the schedule "cosine".
    """
    return make_straw(
        CompactCNN(classes, dtype=dtype),
        _images(image),
        rank=rank,
        base=base,
        encoder=encoder or NormEncoder(dtype=dtype),
        hidden=16,
        start="article",
        dtype=dtype,
    )


def compact_geometric(
    *,
    classes: int,
    poses: PoseRange = POSES,
    image: ImageShape = _GREY,
    dtype: DTypeLike | None = None,
) -> Geometric:
    """Return the compact executor with an encoder that predicts the pose of each image.

    To be trained as run.py's preset "geometric" is.

    Args:
        classes: number of classes.
        poses: that there are, by default angles up to 60 degrees.
        image: shape of what is classified.
        dtype: in which executor and encoder compute.
    """
    return make_geometric(
        CompactCNN(classes, dtype=dtype),
        _images(image),
        kernel="conv1/kernel",
        poses=poses,
        encoder=PoseEncoder(poses, dtype=dtype),
    )


def vit_straw(
    *,
    classes: int,
    rank: int = 4,
    base: Base = "trained",
    encoder: nn.Module | None = None,
    image: ImageShape = _GREY,
    dtype: DTypeLike | None = None,
) -> Straw:
    """Return a STRAW that rewrites the attention and the MLPs of a small vision transformer.

    Its other leaves (convolutions, positions, norms, the last layer) keep their trained weights.
    Its encoder is `NormEncoder()`, if none is given.
    """
    return make_straw(
        ViT(classes, dtype=dtype),
        _images(image),
        rank={"block*/*/kernel": rank},
        base=base,
        encoder=encoder or NormEncoder(dtype=dtype),
        hidden=16,
        start="article",
        dtype=dtype,
    )


def parameters(model: Model, image: ImageShape = _GREY) -> int:
    """Count a model's trained parameters."""
    return state.parameters(_shapes(model, image))


def sample_cost(model: Model, image: ImageShape = _GREY) -> int:
    """Count the multiply-adds of one image's way through a model, without its gradient."""

    def logits(variables: Variables, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, None)[0]

    return multiply_adds(logits, _shapes(model, image), _images(image))


def straw_model(straw: Straw, unlabelled: PoseLoss | None = None) -> Model:
    """Return a STRAW as pure functions for the training loop.

    Args:
        straw: The model.
        unlabelled: What its encoder learns from images, `(params, images, key) -> loss [b]`, if
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


def compact_augmented(sizes: Sizes) -> Model:
    """Return the compact executor, trained on labelled images in random poses."""
    model = compact_static(sizes)

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        if key is not None:
            images, _ = in_random_poses(images, POSES, jax.random.fold_in(key, 1))
        return model.apply(variables, images, key)

    return Model(model.init, apply)


def compact_fan(sizes: Sizes) -> Model:
    """Return the compact executor, tested with the mean of its probabilities over rotations."""
    model = compact_static(sizes)
    count = 2 * round(POSES.degrees / _ROTATIONS) + 1
    matrices = affine(jnp.linspace(-POSES.degrees, POSES.degrees, count))

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        if key is not None:
            return model.apply(variables, images, key)

        def rotated(matrix: jax.Array) -> jax.Array:
            logits, _ = model.apply(variables, resample(images, matrix), None)
            return jax.nn.log_softmax(logits.astype(jnp.float32))

        return jax.nn.logsumexp(jax.lax.map(rotated, matrices), axis=0) - jnp.log(count), {}

    return Model(model.init, apply)


def compact_context(sizes: Sizes) -> Model:
    """Return the compact STRAW with a pose encoder, whose style vector writes its updates."""
    encoder = PoseEncoder(POSES, style=_STYLE, dtype=module_dtype(sizes.precision))

    def loss(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        return pose_loss(linen(encoder), params["encoder"], images, POSES, key)

    return straw_model(straw_of_context(sizes), loss)


def straw_of_context(sizes: Sizes) -> Straw:
    """Return the STRAW that `compact_context` is."""
    poses = linen(PoseEncoder(POSES, style=_STYLE, dtype=module_dtype(sizes.precision)))
    encoder = Network(poses.init, lambda params, x: poses.apply(params, x).style)
    return make_straw(
        compact_executor(sizes),
        _images(sizes.image),
        rank=sizes.rank,
        base=sizes.base,
        encoder=encoder,
        hidden=16,
        start="article",
        dtype=module_dtype(sizes.precision),
    )


def geometric(sizes: Sizes) -> Model:
    """Return the compact executor with a pose encoder that learns from images alone."""
    return _self_supervised(_posed(sizes))


def geometric_affine(sizes: Sizes) -> Model:
    """Return `geometric` with scale, shear and shift beside the angle."""
    return _self_supervised(_posed(sizes, _ALL_POSES))


def geometric_stn(sizes: Sizes) -> Model:
    """Return the network of `geometric`, whose pose encoder learns from labels alone.

    With the executor's loss as its only one, this is a spatial transformer.
    """
    return straw_model(straw_of_angles(sizes))


def geometric_refined(sizes: Sizes) -> Model:
    """Return the network of `geometric`, whose pose encoder learns from images and labels."""
    model = _posed(sizes)
    return straw_model(model.straw, model.pose_loss)


def straw_of_angles(sizes: Sizes) -> Straw:
    """Return the STRAW that `geometric` is."""
    return _posed(sizes).straw


def straw_of_affine_poses(sizes: Sizes) -> Straw:
    """Return the STRAW that `geometric_affine` is."""
    return _posed(sizes, _ALL_POSES).straw


def _posed(sizes: Sizes, poses: PoseRange = POSES) -> Geometric:
    return compact_geometric(
        classes=sizes.classes, poses=poses, image=sizes.image, dtype=module_dtype(sizes.precision)
    )


def _self_supervised(geometric: Geometric) -> Model:
    """Let a pose encoder learn from images alone; evaluation averages over all its hypotheses."""

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        called = geometric.straw.apply if key is None else geometric.apply_detached
        return called(variables["params"], images, **_mode(key)), {}

    return straw_model(geometric.straw, geometric.pose_loss)._replace(apply=apply)


def _mode(key: jax.Array | None) -> dict[str, Any]:
    return {} if key is None else {"train": True, "rngs": {"dropout": key}}


def wide(sizes: Sizes) -> Model:
    """Return the executor with all layers scaled to the trained parameters of STRAW."""
    if sizes.executor == "vit":
        return _widened(straw(sizes), _wide_vit, parameters, sizes)
    return _widened(straw(sizes), _wide_cnn, parameters, sizes)


def wide_compute(sizes: Sizes) -> Model:
    """Return the executor with all layers scaled to the multiply-adds of STRAW."""
    return _widened(straw(sizes), _wide_cnn, sample_cost, sizes)


def wide_dense(sizes: Sizes) -> Model:
    """Return the executor with its dense layer widened to the trained parameters of STRAW."""

    def static(sizes: Sizes, width: int) -> nn.Module:
        return CNN(sizes.classes, hidden=width, dtype=module_dtype(sizes.precision))

    return _widened(straw(sizes), static, parameters, sizes)


def compact_wide(sizes: Sizes) -> Model:
    """Return the compact executor, widened to the trained parameters of the compact STRAW."""

    def static(sizes: Sizes, width: int) -> nn.Module:
        stages = tuple((8 * max(round(width / n / 8), 1),) for n in (4, 2, 1))
        return CompactCNN(sizes.classes, stages, dtype=module_dtype(sizes.precision))

    return _widened(compact(sizes), static, parameters, sizes)


def _wide_cnn(sizes: Sizes, width: int) -> nn.Module:
    channels = round(width / 4), round(width / 2)
    return CNN(sizes.classes, channels=channels, hidden=width, dtype=module_dtype(sizes.precision))


def _wide_vit(sizes: Sizes, width: int) -> nn.Module:
    heads = ViT().heads
    width = heads * max(round(width / heads), 1)
    return ViT(sizes.classes, width=width, dtype=module_dtype(sizes.precision))


def _widened(
    straw: Model,
    static: Callable[[Sizes, int], nn.Module],
    count: Callable[[Model, ImageShape], int],
    sizes: Sizes,
) -> Model:
    """Widen an executor until it is as near to its STRAW in a count as whole widths allow.

    Args:
        straw: The STRAW to match.
        static: `(sizes, width) -> executor`, with a last hidden layer, or a last convolution, of
            this width.
        count: Of a model.
        sizes: Of both.
    """

    @cache
    def count_at(width: int) -> int:
        return count(flax_model(static(sizes, width)), sizes.image)

    target = count(straw, sizes.image)
    above = _first_width(count_at, target)
    nearest = min(
        max(above - 1, _WIDTHS[0]), above, key=lambda width: abs(count_at(width) - target)
    )
    return flax_model(static(sizes, nearest))


def _first_width(count_at: Callable[[int], int], target: int) -> int:
    """Return the first of all widths whose count is no less than a target.

    Counts grow with the width as a polynomial of degree 2 does, but for rounded widths. So a width
    is computed from a few counts, and searched for beside it: each count takes a trace.

    Args:
        count_at: Of a model of a width.
        target: The count to reach.
    """
    few = (64, 128, 256)  # which no model rounds
    curve = np.polyfit(few, [count_at(width) for width in few], 2)
    computed = int(np.searchsorted(np.polyval(curve, _WIDTHS), target))
    low = high = min(computed, len(_WIDTHS) - 1)
    reach = 1
    while low > 0 and count_at(_WIDTHS[low]) >= target:
        low, reach = max(low - reach, 0), 2 * reach
    while high < len(_WIDTHS) - 1 and count_at(_WIDTHS[high]) < target:
        high, reach = min(high + reach, len(_WIDTHS) - 1), 2 * reach
    return _WIDTHS[bisect.bisect_left(_WIDTHS, target, low, high, key=count_at)]


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


def of_hypernetworks(name: str, sizes: Sizes) -> Model:
    """Return a network of the HyperNetworks paper.

    Args:
        name: Of `_GENERATED`, for kernels of its own; with "_generated", to have them written by
            one generator; with "_narrow", for its own in so few channels that they have about as
            many parameters as that.
        sizes: Number of classes and shape of the images.
    """
    classes, image = sizes.classes, sizes.image
    form = next((form for form in ("_narrow", "_generated") if name.endswith(form)), "")
    make, narrow, kernels, size = _GENERATED[name.removesuffix(form)]
    make = partial(make, classes, dtype=module_dtype(sizes.precision))
    if form == "_narrow":
        return flax_model(make(channels=narrow))
    if not form:
        return flax_model(make())
    generated = make_hypernetwork(
        make(),
        _images(image),
        [kernels],
        chunk=(16, 16),
        embedding=size,
        hidden=size,
        dtype=module_dtype(sizes.precision),
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
