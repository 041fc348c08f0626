"""Pose encoders, and executors whose first kernel is composed with an estimated pose.

A pose encoder learns from images alone: resample an image by a random pose, predict this pose. An
image may look upright in several poses, so the encoder predicts several, each with a confidence.
The executor's first kernel is composed with the inverse of each, and the probabilities that result
are averaged, weighted by confidence.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.factors import Entry, FactorSpec, factor_spec, named_leaves
from straw_jax.geometry import affine, compose, invert, resample
from straw_jax.kinds import Posed
from straw_jax.layers import max_pool
from straw_jax.lift import modulate
from straw_jax.lowrank import accumulator_dtype
from straw_jax.network import Network, Params, as_network, zeros_like
from straw_jax.straw import Straw, for_each_sample

_STEP = 5.0  # degrees between neighbouring angles of a pose encoder's distribution
_MARGIN = 15.0  # degrees of that distribution beyond the range: images are not quite upright
_WIDTH = 4.0  # degrees, standard deviation of the target distribution around the true angle
_INITIAL_WIDTH = 15.0  # degrees, standard deviation of an untrained encoder's, around 0
_NEIGHBOURS = 2  # angles on each side of a maximum that belong to its hypothesis

NUMBERS = 6
"""Numbers per hypothesis: logarithm of its confidence, degrees, and four more of a pose."""


class PoseRange(NamedTuple):
    """The poses that training draws, uniformly and independently.

    Attributes:
        degrees: largest angle in either direction, in degrees; above 0, at most 165.
        scale: largest factor by which an image is enlarged or shrunk; from 1.
        shear: largest shear in either direction, as in `affine`.
        shift: largest shift in each direction, in halves of the image's height.
        upright: share of images that keep their own pose, from 0 to 1. With a share above 0 the
            encoder prefers "upright" for an image that looks upright in several poses.

    Example:
        >>> import jax
        >>> from straw_jax import PoseRange
        >>> poses = PoseRange(degrees=30.0, scale=1.2)
        >>> poses.draw(jax.random.key(0), 4).shape
        (4, 5)
    """

    degrees: float = 60.0
    scale: float = 1.0
    shear: float = 0.0
    shift: float = 0.0
    upright: float = 0.25

    @property
    def more_than_angles(self) -> bool:
        """Whether scale, shear or shift is drawn too."""
        return (self.scale, self.shear, self.shift) != (1.0, 0.0, 0.0)

    @property
    def largest(self) -> np.ndarray:
        """Largest numbers of a pose, float32 `[5]`, in the order of `draw`."""
        numbers = [self.degrees, np.log(self.scale), self.shear, self.shift, self.shift]
        return np.asarray(numbers, np.float32)

    def draw(self, key: Array, count: int) -> Array:
        """Draw poses.

        Args:
            key: typed random key.
            count: number of poses.

        Returns:
            float32 `[count, 5]`: degrees, logarithm of the scale, shear, shift down, shift right.
        """
        expect.random_key("PoseRange.draw", key)
        of_change, of_numbers = jax.random.split(key)
        drawn = jax.random.uniform(of_numbers, (count, 5), minval=-1.0, maxval=1.0)
        drawn *= self.largest[None]
        changed = jax.random.bernoulli(of_change, 1 - self.upright, (count, 1))
        return jnp.where(changed, drawn, 0.0)


ANGLES = PoseRange()
"""Angles alone, up to 60 degrees."""


class PoseEstimate(NamedTuple):
    """What a pose encoder returns for a batch of images.

    Attributes:
        angles: logits `[batch, bins]` of the angles `angles_of(poses)`.
        others: `[batch, bins, 4]`, for each angle, if it is the true one: logarithm of the scale,
            shear, shift down, shift right. None where the range has angles only.
        style: style vectors `[batch, style]`, or None where the encoder has none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import PoseEncoder, linen
        >>> images = jnp.ones((2, 8, 8, 1))
        >>> encoder = linen(PoseEncoder(features=(8, 8)))
        >>> params = jax.jit(encoder.init)(jax.random.key(0), images)
        >>> estimate = jax.eval_shape(encoder.apply, params, images)
        >>> estimate.angles.shape, estimate.others, estimate.style
        ((2, 31), None, None)
    """

    angles: Array
    others: Array | None
    style: Array | None


class PoseEncoder(nn.Module):
    """Estimate the poses of images: 3x3 convolutions with GroupNorm, ReLU and 2x2 max-pools.

    Untrained, it estimates that every image is upright.

    Attributes:
        poses: the range of poses.
        features: output channels of the convolutions; multiples of 8.
        style: length of the style vector that it returns besides; 0 for none.
        dtype: of computation, as in Flax: parameters stay float32. Of poses, and of the layers that
            estimate them, it is float32 or wider. See `make_straw`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import PoseEncoder, PoseRange
        >>> encoder = PoseEncoder(PoseRange(degrees=30.0, scale=1.2), features=(8, 8), style=16)
        >>> init = jax.jit(encoder.init_with_output)
        >>> estimate, _ = init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> [part.shape for part in estimate]
        [(2, 19), (2, 19, 4), (2, 16)]
    """

    poses: PoseRange = ANGLES
    features: Sequence[int] = (32, 64, 128)
    style: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> PoseEstimate:
        """Return the poses of images `[batch, h, w, c]`.

        Raises:
            ValueError: if the images are too small for the max-pools.
        """
        expect.compute_dtype("PoseEncoder", self.dtype)
        expect.widths("PoseEncoder", features=self.features)
        expect.multiples_of_8("PoseEncoder", "features", self.features)
        expect.images("PoseEncoder", x, least=2 ** len(self.features))  # a max-pool for each
        for i, features in enumerate(self.features, start=1):
            convolution = nn.Conv(
                features,
                (3, 3),
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name=f"conv{i}",
            )
            norm = nn.GroupNorm(num_groups=8, dtype=self.dtype, name=f"norm{i}")
            x = max_pool(nn.relu(norm(convolution(x))))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        angles, zeros = angles_of(self.poses), nn.initializers.zeros
        exact = None if self.dtype is None else accumulator_dtype(self.dtype)
        upright = -0.5 * (angles / _INITIAL_WIDTH) ** 2
        logits = nn.Dense(
            len(angles),
            kernel_init=zeros,
            bias_init=lambda *_: jnp.asarray(upright),
            dtype=exact,
            name="angles",
        )(x)
        others = style = None
        if self.poses.more_than_angles:
            head = nn.Dense(4 * len(angles), kernel_init=zeros, dtype=exact, name="others")
            others = head(x).reshape(x.shape[0], len(angles), 4)
        if self.style:
            known = jnp.concatenate([x, nn.softmax(logits).astype(x.dtype)], axis=-1)
            style = nn.tanh(nn.Dense(self.style, dtype=self.dtype, name="style")(known))
        return PoseEstimate(logits, others, style)


def angles_of(poses: PoseRange) -> np.ndarray:
    """Return the angles over which a pose encoder returns a distribution.

    Args:
        poses: the range of poses.

    Returns:
        float32 `[bins]`, in degrees: steps of 5, from somewhat below the range to somewhat above.

    Raises:
        ValueError: if a number of the range is out of its bounds, see `PoseRange`.

    Example:
        >>> from straw_jax import PoseRange
        >>> from straw_jax.pose import angles_of
        >>> angles_of(PoseRange(degrees=5.0)).tolist()
        [-20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0]
    """
    if not isinstance(poses, PoseRange):
        raise ValueError(f"PoseRange: expected a range of poses, got {expect.describe(poses)}.")
    expect.finite("PoseRange", **poses._asdict())
    within = 0 < poses.degrees <= 180 - _MARGIN and poses.scale >= 1 and 0 <= poses.upright <= 1
    if not within or min(poses.shear, poses.shift) < 0:
        raise ValueError(
            f"PoseRange: expected degrees above 0 and at most {180 - _MARGIN:g}, a scale from 1,"
            " shear and shift from 0, a share of upright ones from 0 to 1, got"
            f" {poses}. Larger angles would wrap around: choose a smaller range."
        )
    count = int(np.ceil((poses.degrees + _MARGIN) / _STEP))
    return _STEP * np.arange(-count, count + 1, dtype=np.float32)


@dataclass(frozen=True)
class Geometric:
    """A model whose modulator predicts poses, and the loss that trains its pose encoder.

    Attributes:
        straw: the model. Its style vectors are hypotheses, `[batch, hypotheses * 6]`: per
            hypothesis the logarithm of its confidence, degrees, logarithm of the scale, shear,
            shift down and shift right, of the image as it is. Zeros mean an upright image. `apply`
            returns logarithms of probabilities. `factors` are those of the likeliest pose; `merge`
            raises a ValueError.
        encoder: images to `PoseEstimate`, a `Network` of the parameters "encoder".
        poses: the range of poses.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import CompactCNN, make_geometric
        >>> images = jnp.ones((2, 8, 8, 1))
        >>> model = make_geometric(CompactCNN(10, stages=((8,),)), images, kernel="conv1/kernel")
        >>> params = jax.jit(model.straw.init)(jax.random.key(0))
        >>> sorted(params)
        ['encoder', 'executor']
        >>> jax.eval_shape(model.pose_loss, params, images, jax.random.key(1)).shape
        (2,)
    """

    straw: Straw
    encoder: Network
    poses: PoseRange

    def apply_detached(self, params: Params, images: Array, **kwargs: Any) -> Array:
        """Apply the model so that only its executor is trained: the encoder gets no gradient.

        Uses the likeliest pose only: other hypotheses would add cost and no benefit in training.

        Args:
            params: the model's.
            images: `[batch, h, w, c]`, upright.
            **kwargs: for the executor.

        Returns:
            Logarithms of probabilities `[batch, classes]`.
        """
        expect.images("Geometric.apply_detached", images)
        likeliest = self.straw.styles(params, images)[:, :NUMBERS]
        styles = jax.lax.stop_gradient(likeliest)
        return self.straw.apply_styles(params, styles, images, **kwargs)

    def pose_loss(self, params: Params, images: Array, key: Array) -> Array:
        """Return the pose encoder's loss `[batch]`, see `straw_jax.pose.pose_loss`."""
        expect.parts("Geometric.pose_loss", params, ("encoder",))
        return pose_loss(self.encoder, params["encoder"], images, self.poses, key)


def make_geometric(
    executor: nn.Module | Network,
    sample: Any,
    *,
    kernel: str,
    poses: PoseRange = ANGLES,
    hypotheses: int = 3,
    encoder: nn.Module | Network | None = None,
) -> Geometric:
    """Compose a pose encoder with an executor whose first kernel follows the estimated pose.

    For each image the encoder predicts its likeliest poses. For each pose the executor's first
    kernel is composed with the resampling that undoes it, as `Posed`, and the probabilities that
    result are averaged, weighted by confidence. All of it is differentiable.

    Two ways to train it: `Geometric.pose_loss` plus the executor's loss on
    `Geometric.apply_detached`, so that the encoder learns from images alone; or `pose_loss` plus
    the executor's loss on `straw.apply`, so that labels refine the encoder too.

    Args:
        executor: an ordinary classifier, images to logits.
        sample: images `[n, h, w, c]`; only shapes and dtypes are used.
        kernel: path of the executor's first kernel, that of a convolution. A later convolution is
            not refused; its input features would be resampled.
        poses: the range of poses.
        hypotheses: number of poses per image.
        encoder: images to `PoseEstimate`, by default `PoseEncoder(poses)`.

    Returns:
        Pure functions, see `Geometric`.

    Raises:
        ValueError: if `hypotheses` is below 1 or above the number of angles, the range is out of
            bounds, the sample is not a batch of images, `kernel` is not a convolution's kernel, or
            the encoder's output does not fit the range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import CompactCNN, make_geometric
        >>> images = jnp.ones((2, 8, 8, 1))
        >>> model = make_geometric(CompactCNN(10, stages=((8,),)), images, kernel="conv1/kernel")
        >>> params = jax.jit(model.straw.init)(jax.random.key(0))
        >>> jax.jit(model.straw.apply)(params, images).shape
        (2, 10)
    """
    executor = as_network(executor)
    sample = zeros_like(sample, "make_geometric")
    angles = angles_of(poses)
    if not expect.is_whole(hypotheses) or not 1 <= hypotheses <= len(angles):
        raise ValueError(
            f"make_geometric: expected 1 to {len(angles)} hypotheses, at most one for each angle of"
            f" the range, got {hypotheses}."
        )
    if np.ndim(sample) != 4:
        raise ValueError(
            "make_geometric: expected a sample of images [n, h, w, c], got"
            f" {jax.tree.map(np.shape, sample)}. One image needs an axis in front."
        )
    encoder = as_network(PoseEncoder(poses) if encoder is None else encoder)
    _check_encoder(encoder, sample, poses)
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), sample))
    leaves = named_leaves(shapes)
    if not isinstance(kernel, str) or kernel not in leaves:
        kernels = ", ".join(path for path, leaf in leaves.items() if leaf.ndim == 4)
        raise ValueError(f"make_geometric: expected the path of one of {kernels}, got {kernel!r}.")
    spec: FactorSpec = factor_spec(shapes, {kernel: "pose"})
    executor_apply = modulate(executor.apply)

    def init(key: Array) -> Params:
        expect.random_key("Straw.init", key)
        of_encoder, of_executor = jax.random.split(key)
        return {
            "encoder": encoder.init(of_encoder, sample),
            "executor": executor.init(of_executor, sample),
        }

    def styles(params: Params, context: Any) -> Array:
        expect.parts("Straw", params, ("encoder",))
        expect.like("Straw", "the context", context, sample)
        estimate = encoder.apply(params["encoder"], context)
        poses = likeliest(estimate, angles, hypotheses)
        return poses.reshape(poses.shape[0], hypotheses * NUMBERS)

    def numbers_of(styles: Array) -> Array:
        """Return hypotheses `[batch, hypotheses, 6]`; `apply_detached` passes only the first."""
        return styles.reshape(styles.shape[0], styles.shape[1] // NUMBERS, NUMBERS)

    def matrices(styles: Array) -> Array:
        """Return the inverse of each pose, `[batch, hypotheses, 2, 3]`."""
        _, degrees, size, shear, down, right = jnp.moveaxis(numbers_of(styles), -1, 0)
        return invert(affine(degrees, jnp.exp(size), shear, down, right))

    def apply_styles(params: Params, styles: Array, x: Any, **kwargs: Any) -> Any:
        expect.parts("Straw", params, ("encoder", "executor"))
        if "index" in kwargs:
            raise ValueError(
                "Straw: expected a pose for each sample, or one for all, got index, which a model"
                " of make_geometric does not have. Give styles[index], each a few numbers."
            )
        styles = for_each_sample(styles, expect.like("Straw", "x", x, sample))
        if styles.shape[1] == 0 or styles.shape[1] % NUMBERS:
            raise ValueError(
                f"Straw: expected style vectors of {NUMBERS} numbers for each hypothesis, got"
                f" {expect.describe(styles)}. Straw.styles makes them."
            )

        def one(matrix: Array) -> Array:
            return executor_apply(params["executor"], {kernel: Posed(matrix)}, x, **kwargs)

        logits = jax.vmap(one, in_axes=1, out_axes=1)(matrices(styles))
        confidence = nn.log_softmax(numbers_of(styles)[..., 0])
        summed = logits.astype(accumulator_dtype(logits.dtype))
        weighted = nn.log_softmax(summed) + confidence[..., None].astype(summed.dtype)
        return jax.nn.logsumexp(weighted, axis=1).astype(logits.dtype)

    def apply(params: Params, x: Any, *, context: Any = None, **kwargs: Any) -> Any:
        expect.like("Straw", "x", x, sample)
        return apply_styles(params, styles(params, x if context is None else context), x, **kwargs)

    def apply_factors(params: Params, factors: Any, x: Any, **kwargs: Any) -> Any:
        return executor_apply(params["executor"], factors, x, **kwargs)

    def factors(params: Params, context: Any) -> dict[str, Entry]:
        return {kernel: Posed(matrices(styles(params, context))[:, 0])}

    def merge(params: Params, context: Any) -> Params:
        raise ValueError(
            "make_geometric: a convolution composed with a pose has no kernel of its own, so it"
            " cannot be merged. Resample the image instead."
        )

    straw = Straw(spec, init, apply, styles, apply_styles, apply_factors, factors, merge)
    return Geometric(straw, encoder, poses)


def _check_encoder(encoder: Network, sample: Any, poses: PoseRange) -> None:
    """Raise a ValueError unless an encoder returns estimates for this range of poses."""
    estimate = jax.eval_shape(
        lambda: encoder.apply(encoder.init(jax.random.key(0), sample), sample)
    )
    shape = len(sample), len(angles_of(poses))
    others = (*shape, 4) if poses.more_than_angles else None
    got = [getattr(getattr(estimate, name, None), "shape", None) for name in ("angles", "others")]
    if got != [shape, others]:
        raise ValueError(
            f"make_geometric: expected an encoder that returns a `PoseEstimate` with angles {shape}"
            f" and others {others}, got {got[0]} and {got[1]}. `PoseEncoder(poses)` is one."
        )


def pose_loss(
    encoder: nn.Module | Network, params: Params, images: Array, poses: PoseRange, key: Array
) -> Array:
    """Compute the self-supervised loss of a pose encoder.

    Resamples each image by a random pose, which the encoder is to predict; no labels. Images should
    be square and empty towards the border: what leaves the frame is lost, and pixels beyond the
    frame repeat its edge, from which an encoder may infer that the image was resampled.

    Args:
        encoder: images to `PoseEstimate`.
        params: its parameters.
        images: `[batch, h, w, c]`, upright.
        poses: the range to draw from.
        key: typed random key.

    Returns:
        float32 `[batch]`, in nats: the cross-entropy between the predicted angles and a Gaussian
        around the true one. Where the range has more than angles, plus the squared error of each
        other number, relative to its range, averaged over angles with the weights of that Gaussian.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import PoseEncoder, PoseRange, linen
        >>> from straw_jax.pose import pose_loss
        >>> images, poses = jnp.ones((2, 8, 8, 1)), PoseRange(degrees=30.0)
        >>> encoder = linen(PoseEncoder(poses, features=(8, 8)))
        >>> params = jax.jit(encoder.init)(jax.random.key(0), images)
        >>> loss = jax.jit(lambda params, key: pose_loss(encoder, params, images, poses, key))
        >>> loss(params, jax.random.key(1)).shape
        (2,)
    """
    encoder, angles = as_network(encoder), angles_of(poses)
    images, drawn = in_random_poses(images, poses, key)
    degrees, others = drawn[:, 0], drawn[:, 1:]
    estimate = encoder.apply(params, images)
    distance = (jnp.asarray(angles)[None] - degrees[:, None]) / _WIDTH
    target = nn.softmax(-0.5 * distance**2)
    loss = -jnp.sum(target * nn.log_softmax(estimate.angles.astype(jnp.float32)), axis=-1)
    if estimate.others is not None:
        ranges = poses.largest[1:]
        unit = np.where(ranges > 0, ranges, np.float32(1))
        error = (estimate.others.astype(jnp.float32) - others[:, None]) / unit[None, None]
        loss += jnp.sum(target[..., None] * error**2, axis=(1, 2))
    return loss


def in_random_poses(images: Array, poses: PoseRange, key: Array) -> tuple[Array, Array]:
    """Resample images by random poses, without traces of the resampling.

    Args:
        images: `[batch, h, w, c]`, floating.
        poses: the range to draw from.
        key: typed random key.

    Returns:
        The images, and their poses `[batch, 5]` as from `PoseRange.draw`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.pose import ANGLES, in_random_poses
        >>> resampled = jax.jit(lambda images, key: in_random_poses(images, ANGLES, key))
        >>> images, poses = resampled(jnp.ones((2, 8, 8, 1)), jax.random.key(0))
        >>> images.shape, poses.shape
        ((2, 8, 8, 1), (2, 5))
    """
    expect.images("in_random_poses", images)
    expect.random_key("in_random_poses", key)
    of_poses, of_traces = jax.random.split(key)
    drawn = poses.draw(of_poses, len(images))
    degrees, size, shear, down, right = drawn.T
    matrices = affine(degrees, jnp.exp(size), shear, down, right)
    return _in_poses(images, matrices, of_traces), drawn


def _in_poses(images: Array, matrices: Array, key: Array) -> Array:
    """Resample images `[batch, h, w, c]` by poses, without traces of the resampling.

    Otherwise an encoder uses smooth or ragged strokes as a cue, and mistakes a blurred image for a
    rotated one. So half of the images are first rotated by any angle, then by the difference to
    their pose; each resampling is linear, nearest-neighbour, or between the two; and at the end
    each image is blurred by a random amount.
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
    """Mix a share of each neighbour into every pixel, along both axes; the edge repeats."""
    for axis in (1, 2):
        pads = [(int(axis == other),) * 2 for other in range(images.ndim)]
        padded = jnp.pad(images, pads, mode="edge")
        size = images.shape[axis]
        before, after = (
            jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2)
        )
        images = images + side.astype(images.dtype) * (before + after - 2 * images)
    return images


def likeliest(estimate: PoseEstimate, angles: np.ndarray, count: int) -> Array:
    """Return the likeliest poses of each image.

    A hypothesis is a local maximum of the distribution over angles, with two neighbouring angles on
    each side: its confidence is the sum of their probabilities, its numbers are their means. Among
    equal neighbours the angle nearest 0 is the maximum. Where there are fewer maxima than `count`,
    the remaining hypotheses have almost no confidence.

    Args:
        estimate: of a batch of images.
        angles: `[bins]`, from `angles_of`.
        count: number of hypotheses per image.

    Returns:
        float32 `[batch, count, 6]`, as in `Geometric`, the most confident first.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.pose import ANGLES, PoseEstimate, angles_of, likeliest
        >>> angles = angles_of(ANGLES)
        >>> logits = jnp.where(angles == 20.0, 10.0, 0.0)[None]
        >>> hypotheses = likeliest(PoseEstimate(logits, None, None), angles, 3)
        >>> hypotheses.shape, hypotheses[0, 0, 1].round().item()
        ((1, 3, 6), 20.0)
    """
    if estimate.angles.shape[1:] != angles.shape or not 1 <= count <= len(angles):
        raise ValueError(
            f"likeliest: expected a distribution over {len(angles)} angles and at most as many"
            f" hypotheses, got {expect.describe(estimate.angles)} and {count}. Make the encoder for"
            " this range of poses."
        )
    return _likeliest(estimate.angles, estimate.others, angles, count)


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _likeliest(logits: Array, others: Array | None, angles: Array, count: int) -> Array:
    likely = nn.softmax(logits.astype(jnp.float32))
    around = _with_neighbours(likely, 0.0)  # [batch, bins, neighbours]
    before, after = around[..., _NEIGHBOURS - 1], around[..., _NEIGHBOURS + 1]
    highest = jnp.where(angles > 0, likely > before, likely >= before)
    highest &= jnp.where(angles < 0, likely > after, likely >= after)
    confidence, chosen = jax.lax.top_k(jnp.where(highest, around.sum(axis=-1), 0.0), count)
    numbers = jnp.broadcast_to(angles[None, :, None], (*likely.shape, 1))
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
    """Return each of `[batch, bins]` between its neighbours, `[batch, bins, 5]`.

    Beyond the ends stands the number `beyond`, or where it is None the last value.
    """
    pads = ((0, 0), (_NEIGHBOURS, _NEIGHBOURS))
    padded = (
        jnp.pad(values, pads, mode="edge")
        if beyond is None
        else jnp.pad(values, pads, constant_values=beyond)
    )
    bins = values.shape[1]
    return jnp.stack([padded[:, i : i + bins] for i in range(2 * _NEIGHBOURS + 1)], axis=-1)
