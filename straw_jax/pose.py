"""An eye that sees how an image is turned, and an executor whose first weights turn with it.

The eye learns from images alone: turn one by a known angle, ask for the angle. An image may look
upright in several ways, so it names its likeliest poses, each with a confidence; the executor's
first kernel is composed with each, and what it says is averaged by confidence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from straw_jax.factors import FactorSpec, Update, factor_spec, named_leaves
from straw_jax.geometry import Posed, affine, compose, invert, resample
from straw_jax.layers import max_pool
from straw_jax.lift import modulate
from straw_jax.straw import Network, Params, Straw, as_network, zeros_like

_STEP = 5.0  # degrees from one angle that the eye tells apart to the next
_MARGIN = 15.0  # degrees beyond the largest: an image is not upright to begin with
_WIDTH = 4.0  # degrees, of the distribution that the eye is to give around the true angle
_DOUBT = 15.0  # degrees, of that which it gives at the start, around 0
_NEAR = 2  # neighbours on each side that belong to one hypothesis

NUMBERS = 6
"""Of a hypothesis: logarithm of its confidence, degrees, and four more of a pose."""


class PoseRange(NamedTuple):
    """From which poses training draws, uniformly and independently.

    Attributes:
        degrees: of the angle, to both sides; above 0, at most 165.
        scale: at most so many times as large, or as small; from 1.
        shear: at most, to both sides, as in `affine`.
        shift: at most, in halves of the image's height, in each direction.
        upright: share of images that are left in their own pose, from 0 to 1. The eye then takes an
            image that may be seen in several ways for an upright one, as most are.
    """

    degrees: float = 60.0
    scale: float = 1.0
    shear: float = 0.0
    shift: float = 0.0
    upright: float = 0.25

    @property
    def more_than_angles(self) -> bool:
        """Whether anything but the angle is drawn."""
        return (self.scale, self.shear, self.shift) != (1.0, 0.0, 0.0)

    @property
    def largest(self) -> np.ndarray:
        """Largest numbers of a pose, float32 `[5]`, in the order of `draw`."""
        numbers = [self.degrees, np.log(self.scale), self.shear, self.shift, self.shift]
        return np.asarray(numbers, np.float32)

    def draw(self, key: Array, count: int) -> Array:
        """Return poses `[count, 5]`: degrees, logarithm of scale, shear, shift down and right."""
        turned, numbers = jax.random.split(key)
        drawn = jax.random.uniform(numbers, (count, 5), minval=-1.0, maxval=1.0)
        drawn *= self.largest[None]
        changed = jax.random.bernoulli(turned, 1 - self.upright, (count, 1))
        return jnp.where(changed, drawn, 0.0)


ANGLES = PoseRange()
"""Angles alone, up to 60 degrees."""


class Seen(NamedTuple):
    """What an eye makes of images.

    Attributes:
        angles: logits `[batch, bins]` of the angle, by `angles_of`.
        others: `[batch, bins, 4]`: were the angle that one, the logarithm of the scale, the shear,
            and the shift down and right; or None where only angles are seen.
        style: style vectors `[batch, style]`, or None where the eye writes none.
    """

    angles: Array
    others: Array | None
    style: Array | None


class PoseEncoder(nn.Module):
    """Look at images for their pose: 3x3 convolutions with GroupNorm, ReLU and 2x2 max-pools.

    At the start it sees every image upright.

    Attributes:
        poses: that there are.
        features: output channels of the convolutions; multiples of 8.
        style: length of a style vector that is written beside; 0 for none.
    """

    poses: PoseRange = ANGLES
    features: Sequence[int] = (32, 64, 128)
    style: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Seen:
        """Return what is seen in images `[batch, h, w, c]`.

        Raises:
            ValueError: if max-pools leave nothing of them.
        """
        least = 2 ** len(self.features)
        if min(x.shape[1:3]) < least:
            raise ValueError(
                f"PoseEncoder: expected images [batch, h, w, c] of at least {least}x{least} pixels"
                f" for {len(self.features)} max-pools, got {x.shape}. Give it fewer features."
            )
        for i, features in enumerate(self.features, start=1):
            init = nn.initializers.he_normal()
            x = nn.Conv(features, (3, 3), use_bias=False, kernel_init=init, name=f"conv{i}")(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, name=f"norm{i}")(x))
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        angles, zeros = angles_of(self.poses), nn.initializers.zeros
        upright = -0.5 * (angles / _DOUBT) ** 2
        logits = nn.Dense(
            len(angles), kernel_init=zeros, bias_init=lambda *_: jnp.asarray(upright), name="angles"
        )(x)
        others = style = None
        if self.poses.more_than_angles:
            others = nn.Dense(4 * len(angles), kernel_init=zeros, name="others")(x)
            others = others.reshape(-1, len(angles), 4)
        if self.style:
            known = jnp.concatenate([x, nn.softmax(logits)], axis=-1)
            style = nn.tanh(nn.Dense(self.style, name="style")(known))
        return Seen(logits, others, style)


def angles_of(poses: PoseRange) -> np.ndarray:
    """Return the angles that an eye tells apart, in degrees, float32 `[bins]`.

    Raises:
        ValueError: if the range is not one of angles below a half turn, or not one of poses.
    """
    within = 0 < poses.degrees <= 180 - _MARGIN and poses.scale >= 1 and 0 <= poses.upright <= 1
    if not within or min(poses.shear, poses.shift) < 0:
        raise ValueError(
            f"PoseRange: expected degrees above 0 and at most {180 - _MARGIN:g}, a scale from 1,"
            " shear and shift from 0, a share of upright ones from 0 to 1, got"
            f" {poses}. Angles of a whole turn have no two ends."
        )
    count = int(np.ceil((poses.degrees + _MARGIN) / _STEP))
    return _STEP * np.arange(-count, count + 1, dtype=np.float32)


class Geometric(NamedTuple):
    """A model whose modulator sees poses, and what teaches it to.

    Attributes:
        straw: the model; its style vectors are hypotheses, `[batch, hypotheses * 6]`: of each the
            logarithm of its confidence, degrees, logarithm of the scale, shear, shift down and
            right, of what is seen. Zeros are an upright image. What it applies gives the logarithm
            of probabilities. `factors` are those of the likeliest pose; `merge` is refused.
        eye: images to `Seen`, as `Network`, of the parameters "encoder".
        poses: that there are.
    """

    straw: Straw
    eye: Network
    poses: PoseRange

    def apply_detached(self, params: Params, images: Array, **kwargs: Any) -> Array:
        """Apply the model, to train its executor alone: no gradient reaches the eye.

        The executor learns by the likeliest pose: other hypotheses would only add to the cost.

        Args:
            params: the model's.
            images: `[batch, h, w, c]`, upright.
            **kwargs: for the executor.

        Returns:
            Logarithm of probabilities `[batch, classes]`.
        """
        likeliest = self.straw.styles(params, images)[:, :NUMBERS]
        styles = jax.lax.stop_gradient(likeliest)
        return self.straw.apply_styles(params, styles, images, **kwargs)

    def pose_loss(self, params: Params, images: Array, key: Array) -> Array:
        """Return the loss by which the eye learns, `[batch]`, see `pose_loss`."""
        return pose_loss(self.eye, params["encoder"], images, self.poses, key)


def make_geometric(
    executor: nn.Module | Network,
    sample: Any,
    *,
    kernel: str,
    poses: PoseRange = ANGLES,
    hypotheses: int = 3,
    eye: nn.Module | Network | None = None,
) -> Geometric:
    """Compose an eye for poses with an executor whose weights it turns.

    For each image the eye names its likeliest poses. For each of these the executor's first kernel
    is composed with the resampling that undoes it, as `Posed`, and the probabilities that result
    are averaged by confidence. All is differentiable. To be trained with `Geometric.pose_loss`
    beside the executor's own loss on `Geometric.apply_detached`, so that the eye learns from images
    alone; or on `straw.apply`, so that what the executor is to say refines the eye, too.

    Args:
        executor: an ordinary classifier that knows nothing of this: images to logits.
        sample: images `[n, h, w, c]`; only shapes and dtypes are used.
        kernel: path of the executor's first kernel, that of a convolution. A later one would have
            its features resampled, which is not refused.
        poses: that there are.
        hypotheses: poses that are tried of each image.
        eye: images to `Seen`, by default `PoseEncoder(poses)`.

    Returns:
        Pure functions, see `Geometric`.

    Raises:
        ValueError: if there are fewer hypotheses than 1 or more than angles, a range is none, the
            sample is no batch of images, the kernel is no leaf or no convolution's, or the eye
            gives something else.
    """
    executor = as_network(executor)
    sample = zeros_like(sample)
    angles = angles_of(poses)
    if not 1 <= hypotheses <= len(angles):
        raise ValueError(
            f"make_geometric: expected 1 to {len(angles)} hypotheses, as many as there are angles"
            f" to tell apart, got {hypotheses}."
        )
    if np.ndim(sample) != 4:
        raise ValueError(
            "make_geometric: expected a sample of images [n, h, w, c], got"
            f" {jax.tree.map(np.shape, sample)}. One image needs an axis in front."
        )
    looking = as_network(PoseEncoder(poses) if eye is None else eye)
    _check_eye(looking, sample, poses)
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), sample))
    if kernel not in (leaves := named_leaves(shapes)):
        kernels = ", ".join(path for path, leaf in leaves.items() if leaf.ndim == 4)
        raise ValueError(f"make_geometric: expected the path of one of {kernels}, got {kernel!r}.")
    spec: FactorSpec = factor_spec(shapes, {kernel: "pose"})
    executor_apply = modulate(executor.apply)

    def init(key: Array) -> Params:
        of_eye, of_executor = jax.random.split(key)
        return {
            "encoder": looking.init(of_eye, sample),
            "executor": executor.init(of_executor, sample),
        }

    def styles(params: Params, context: Any) -> Array:
        seen = looking.apply(params["encoder"], context)
        return likeliest(seen, angles, hypotheses).reshape(-1, hypotheses * NUMBERS)

    def numbers_of(styles: Array) -> Array:
        """Return the hypotheses, `[batch, hypotheses, 6]`; one is enough, see `apply_detached`."""
        return styles.reshape(-1, styles.shape[1] // NUMBERS, NUMBERS)

    def matrices(styles: Array) -> Array:
        """Return what undoes each pose, `[batch, hypotheses, 2, 3]`."""
        _, degrees, size, shear, down, right = jnp.moveaxis(numbers_of(styles), -1, 0)
        return invert(affine(degrees, jnp.exp(size), shear, down, right))

    def apply_styles(params: Params, styles: Array, x: Any, **kwargs: Any) -> Any:
        def one(matrix: Array) -> Array:
            return executor_apply(params["executor"], {kernel: Posed(matrix)}, x, **kwargs)

        logits = jax.vmap(one, in_axes=1, out_axes=1)(matrices(styles))
        confidence = nn.log_softmax(numbers_of(styles)[..., 0])
        said = nn.log_softmax(logits) + confidence[..., None].astype(logits.dtype)
        return jax.nn.logsumexp(said, axis=1)

    def apply(params: Params, x: Any, *, context: Any = None, **kwargs: Any) -> Any:
        return apply_styles(params, styles(params, x if context is None else context), x, **kwargs)

    def factors(params: Params, context: Any) -> dict[str, Update]:
        return {kernel: Posed(matrices(styles(params, context))[:, 0])}

    def merge(params: Params, context: Any) -> Params:
        raise ValueError(
            "make_geometric: no ordinary kernel of a convolution is one that is composed with a"
            " pose. Resample the image instead."
        )

    straw = Straw(spec, init, apply, styles, apply_styles, factors, merge)
    return Geometric(straw, looking, poses)


def _check_eye(eye: Network, sample: Any, poses: PoseRange) -> None:
    """Compare what an eye gives with what is needed of it."""
    seen = jax.eval_shape(lambda: eye.apply(eye.init(jax.random.key(0), sample), sample))
    shape = len(sample), len(angles_of(poses))
    others = (*shape, 4) if poses.more_than_angles else None
    found = [getattr(getattr(seen, name, None), "shape", None) for name in ("angles", "others")]
    if found != [shape, others]:
        raise ValueError(
            f"make_geometric: expected an eye that gives `Seen` with angles {shape} and others"
            f" {others}, got {found[0]} and {found[1]}. `PoseEncoder(poses)` is one for its range."
        )


def pose_loss(eye: Network, params: Params, images: Array, poses: PoseRange, key: Array) -> Array:
    """Return how far an eye is from seeing the poses into which images are brought.

    Each image is resampled by a pose that is drawn; no label has to do with it. Images should be
    square and empty towards the border: what is turned out of the frame is lost, and where its edge
    goes on an eye may see by this that it was turned.

    Args:
        eye: images to `Seen`.
        params: its parameters.
        images: `[batch, h, w, c]`, as they are.
        poses: from which to draw.
        key: typed; decides the poses.

    Returns:
        `[batch]`: the cross-entropy of the angle seen, in nats, beside a Gaussian around the true
        one; and of the other numbers, where there are any, the squared error of each in parts of
        its range, at angles as likely as that Gaussian says.
    """
    angles = angles_of(poses)
    images, drawn = in_random_poses(images, poses, key)
    degrees, others = drawn[:, 0], drawn[:, 1:]
    seen = eye.apply(params, images)
    distance = (jnp.asarray(angles)[None] - degrees[:, None]) / _WIDTH
    target = nn.softmax(-0.5 * distance**2)
    loss = -jnp.sum(target * nn.log_softmax(seen.angles.astype(jnp.float32)), axis=-1)
    if seen.others is not None:
        ranges = poses.largest[1:]
        unit = np.where(ranges > 0, ranges, np.float32(1))
        error = (seen.others.astype(jnp.float32) - others[:, None]) / unit[None, None]
        loss += jnp.sum(target[..., None] * error**2, axis=(1, 2))
    return loss


def in_random_poses(images: Array, poses: PoseRange, key: Array) -> tuple[Array, Array]:
    """Bring images into poses that are drawn, and hide that they were resampled.

    Args:
        images: `[batch, h, w, c]`.
        poses: from which to draw.
        key: typed.

    Returns:
        The images, and their poses `[batch, 5]` as from `PoseRange.draw`.
    """
    of_poses, of_looks = jax.random.split(key)
    drawn = poses.draw(of_poses, len(images))
    degrees, size, shear, down, right = drawn.T
    matrices = affine(degrees, jnp.exp(size), shear, down, right)
    return _in_poses(images, matrices, of_looks), drawn


def _in_poses(images: Array, matrices: Array, key: Array) -> Array:
    """Bring images `[batch, h, w, c]` into poses, and hide that they were resampled.

    Else an eye goes by smooth or ragged strokes, and takes a blurred image for a turned one. So
    half of the images are turned before, by any angle, and go the rest of the way; pixels are mixed
    linearly, or the nearest is taken, or something between; and then each image is blurred, more or
    less.
    """
    before, angle, sharpness, softness = jax.random.split(key, 4)
    count = len(images)
    twice = jax.random.bernoulli(before, 0.5, (count,))
    degrees = jax.random.uniform(angle, (count,), minval=-180.0, maxval=180.0)
    first = affine(jnp.where(twice, degrees, 0.0))
    sharp = 1 / jax.random.uniform(sharpness, (2, count), minval=0.05, maxval=1.0)
    look_up = jax.vmap(lambda image, matrix, s: resample(image, matrix, sharpness=s))
    images = look_up(images, first, sharp[0])
    images = look_up(images, compose(invert(first), matrices), sharp[1])
    return _blurred(images, jax.random.uniform(softness, (count, 1, 1, 1), maxval=1 / 3))


def _blurred(images: Array, side: Array) -> Array:
    """Mix in each pixel's neighbours along both axes, a share of each; the edge goes on."""
    for axis in (1, 2):
        pads = [(int(axis == other),) * 2 for other in range(images.ndim)]
        padded = jnp.pad(images, pads, mode="edge")
        size = images.shape[axis]
        before, after = (
            jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2)
        )
        images = images + side.astype(images.dtype) * (before + after - 2 * images)
    return images


def likeliest(seen: Seen, angles: np.ndarray, count: int) -> Array:
    """Return the likeliest poses of each image, `[batch, count, 6]`, as in `Geometric`.

    A hypothesis is a local maximum of the angles' distribution, with two neighbours on each side:
    its confidence is their sum, its numbers are their means. Of angles that are as likely the one
    nearest upright is the maximum. Fewer maxima than `count` leave hypotheses of next to no
    confidence.
    """
    likely = nn.softmax(seen.angles.astype(jnp.float32))
    around = _with_neighbours(likely, 0.0)  # [batch, bins, neighbours]
    before, after = around[..., _NEAR - 1], around[..., _NEAR + 1]
    highest = jnp.where(angles > 0, likely > before, likely >= before)
    highest &= jnp.where(angles < 0, likely > after, likely >= after)
    confidence, chosen = jax.lax.top_k(jnp.where(highest, around.sum(axis=-1), 0.0), count)
    numbers = jnp.broadcast_to(jnp.asarray(angles)[None, :, None], (*likely.shape, 1))
    others = seen.others
    if others is None:
        others = jnp.zeros((*likely.shape, 4))
    numbers = jnp.concatenate([numbers, others.astype(jnp.float32)], axis=-1)
    nearby = jnp.stack([_with_neighbours(numbers[..., i], None) for i in range(5)], axis=-1)

    def at_chosen(values: Array) -> Array:
        index = chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2))
        return jnp.take_along_axis(values, index, axis=1)

    weights = at_chosen(around) + 1e-9
    weights = weights / weights.sum(axis=-1, keepdims=True)
    means = jnp.sum(weights[..., None] * at_chosen(nearby), axis=2)
    return jnp.concatenate([jnp.log(confidence + 1e-6)[..., None], means], axis=-1)


def _with_neighbours(values: Array, beyond: float | None) -> Array:
    """Give each of `[batch, bins]` its neighbours, itself in the middle: `[batch, bins, 5]`.

    Beyond the ends there is a number, or None for the last one there.
    """
    pads = ((0, 0), (_NEAR, _NEAR))
    padded = (
        jnp.pad(values, pads, mode="edge")
        if beyond is None
        else jnp.pad(values, pads, constant_values=beyond)
    )
    bins = values.shape[1]
    return jnp.stack([padded[:, i : i + bins] for i in range(2 * _NEAR + 1)], axis=-1)
