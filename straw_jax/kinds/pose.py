"""Poses: a kernel is composed with a resampling of its layer's input images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from straw_jax.geometry import check_grid, composed, resample
from straw_jax.kinds.base import Kind, Start, Update, Written, misfit
from straw_jax.kinds.whole import WholeLeaf
from straw_jax.lowrank import ConvGeometry, Lazy
from straw_jax.operators import Kernel, Term, every
from straw_jax.parts import Axes, Part


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posed(Update):
    """A geometric update: compose a kernel with a resampling of its layer's input.

    The layer computes `kernel(R x)`, where `R` is `resample` with a matrix, linear in `x`. The
    composition, which differs from position to position, is never formed. `x` is the operand of the
    convolution itself: where a model pads images before it (as the paddings "CIRCULAR" and
    "REFLECT" do), the padded images are resampled.

    Attributes:
        matrix: `[2, 3]`, as from `affine`, or from `invert` to undo it; or `[batch, 2, 3]` with one
            per sample.
        update: added to the kernel: `Factors`, an array of its shape, or None.
        grid: height and width of the image for a dense layer whose input vector is a flat image
            `[h, w, c]`; None for a convolution. `materialize` can form the composition of such a
            dense kernel, `[h * w * c, out]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Posed, affine, modulate
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> images = jnp.arange(8.0).reshape(2, 4)  # 2 x 2 pixels each
        >>> posed = Posed(affine(jnp.array([0.0, 90.0])), grid=(2, 2))  # one per sample
        >>> layer({"W": jnp.eye(4)}, {"W": posed}, images).round().astype(int).tolist()
        [[0, 1, 2, 3], [5, 7, 4, 6]]
    """

    matrix: Array
    update: Any = None
    grid: tuple[int, int] | None = field(default=None, metadata={"static": True})

    labels: ClassVar[Mapping[str, str]] = {"matrix": "the pose"}
    stands_alone: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, Any]] = {"matrix": np.eye(2, 3, dtype=np.float32)}

    def __post_init__(self) -> None:
        if self.grid is not None:
            object.__setattr__(self, "grid", check_grid("Posed", self.grid))

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"matrix": (2, 3)}

    def flat(self) -> tuple[Update, ...]:
        if self.update is None:
            return (self,)
        update = self.update if isinstance(self.update, Update) else WholeLeaf(self.update)
        return (*update.flat(), replace(self, update=None))

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        return replace(
            kernel, terms=(Resampled(kernel.terms, self.matrix, self.grid, kernel.path),)
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Resampled(Term):
    """Terms composed with a resampling of their layer's input: `kernel(R x)`, never formed.

    Attributes:
        terms: of the kernel.
        matrix: `[2, 3]`, of `R`.
        grid: height and width of the image for a dense layer, see `Posed`.
        path: the leaf's name, for errors.
    """

    terms: tuple[Term, ...]
    matrix: Array
    grid: tuple[int, int] | None = field(metadata={"static": True})
    path: str = field(metadata={"static": True})

    way_out: ClassVar[str] = (
        " A posed kernel is for a convolution over two axes or, with a grid, for a product with a"
        " matrix."
    )

    def _each(self, function: Callable[[Term], Term | None]) -> "Resampled | None":
        terms = every(function(term) for term in self.terms)
        return None if terms is None else replace(self, terms=terms)

    def each_array(self, function: Callable[[Array], Array]) -> "Resampled":
        # Not the matrix: coordinates need more than 8 bits.
        return replace(self, terms=tuple(term.each_array(function) for term in self.terms))

    def scaled(self, factor: ArrayLike) -> "Resampled | None":
        return self._each(lambda term: term.scaled(factor))

    def times(self, part: Part) -> "Resampled | None":
        on_pixels = self.grid is not None and part.axes != (1,)
        return None if on_pixels else self._each(lambda term: term.times(part))

    def each_part(self, function: Callable[[Part], Part | None]) -> "Resampled | None":
        # The rows of a dense layer are pixels; no axis of a convolution's kernel is.
        return None if self.grid is not None else self._each(lambda term: term.each_part(function))

    def _kernel(self, sizes: Axes) -> Kernel:
        arrays = jax.tree.leaves(self.terms, is_leaf=lambda leaf: isinstance(leaf, Lazy))
        dtype = arrays[0].dtype if arrays else self.matrix.dtype
        return Kernel(self.terms, sizes, dtype, self.path)

    def product(
        self, x: Array, x_axes: Axes, out_axes: Axes, sizes: Axes, precision: Any
    ) -> Array | None:
        if self.grid is None or len(sizes) != 2:
            return None
        rows = [axis for axis in x_axes if axis < 2]
        if len(rows) != 1 or rows[0] in out_axes:
            return None
        axis, (height, width) = x_axes.index(rows[0]), self.grid
        if x.shape[axis] % (height * width):
            raise ValueError(
                f"{self.path}: expected its layer's input to be flat images of {height} x {width} "
                f"pixels, the pose's grid, got vectors of length {x.shape[axis]}. Change the grid,"
                " or give the pose to the layer whose input is the images."
            )
        seen = jnp.moveaxis(x, axis, -1)
        image = seen.reshape(*seen.shape[:-1], height, width, -1)
        seen = jnp.moveaxis(resample(image, self.matrix).reshape(seen.shape), -1, axis)
        return self._kernel(sizes).product(
            seen, x_axes, out_axes, precision=precision, dtype=seen.dtype
        )

    def convolve(
        self, x: Array, sizes: Axes, geometry: ConvGeometry, groups: int, precision: Any
    ) -> Array | None:
        if x.ndim != 4:
            return None
        seen = resample(x, self.matrix)
        return self._kernel(sizes).convolve(
            seen, geometry, groups, precision=precision, dtype=seen.dtype
        )

    def materialise(self, sizes: Axes) -> Array:
        if self.grid is None or len(sizes) != 2:
            raise ValueError(
                f"{self.path}: expected a dense layer's kernel whose pose has a grid, got one of "
                f"shape {sizes}, grid {self.grid}: a convolution composed with a pose has no "
                "kernel of its own. Resample the input instead."
            )
        return composed(self._kernel(sizes).materialise(), self.matrix, self.grid)


@dataclass(frozen=True)
class Pose(Kind):
    """A resampling of a convolution's input images; six numbers a sample.

    References:
        Jaderberg et al., "Spatial Transformer Networks" (2015).

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.kinds import Pose
        >>> factor_spec({"conv": jnp.zeros((3, 3, 1, 8))}, {"conv": Pose()}).size
        6
    """

    stands_alone: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The word pose."""
        return "pose"

    def check(self, leaf: Any) -> None:
        if len(leaf.shape) != 4:
            raise misfit(
                "a leaf of rank 'pose'", leaf, "a convolution's kernel of four axes",
                "Choose a convolution of images, or give `modulate` a `Posed` with a grid.",
            )  # fmt: skip

    def written(self, leaf: Any) -> dict[str, Written]:
        return {
            "pose": Written(
                (2, 3), always_zero=True, offset=np.eye(2, 3, dtype=np.float32), exact=True
            )
        }

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        return {"pose": Start(1.0, zero=True)}

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Posed:
        return Posed(parts["pose"])

    def parts(self, update: Posed) -> dict[str, Any]:
        return {"pose": update.matrix}
