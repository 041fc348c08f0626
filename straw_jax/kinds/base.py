"""What a kind of update has to say."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jax.typing import ArrayLike

from straw_jax.operators import Kernel


@dataclass(frozen=True)
class Written:
    """One array that is generated for each sample.

    Attributes:
        shape: without a sample axis.
        zero: whether the generator starts at 0 where an untrained one must not change the executor.
        always_zero: whether it starts at 0 in any case.
        offset: added to what the generator writes: a number, or an array of this shape.
        factor: whether it may be applied without being formed, as `Generated`; it has two axes.
        exact: whether it is float32 or wider, whatever the generator's dtype.
        rank_axis: the axis along which its rank runs: a generator may write it row by row.
        stack_axis: the axis along which the arrays of stacked layers are joined, 0 or 1.

    Example:
        >>> from straw_jax import GeneratedLeaf
        >>> from straw_jax.kinds import Gain, Written
        >>> leaf = GeneratedLeaf("W", (64, 32), Gain())
        >>> leaf.written["outputs"] == Written((32,), offset=1.0)
        True
    """

    shape: tuple[int, ...]
    zero: bool = True
    always_zero: bool = False
    offset: ArrayLike = 0.0
    factor: bool = False
    exact: bool = False
    rank_axis: int | None = None
    stack_axis: int | None = None


@dataclass(frozen=True)
class Shared:
    """One array that all samples share and the generator owns.

    Attributes:
        shape: of the array.
        fan_in: number of inputs of one of its outputs, for its initial values.
        zero: whether it starts at 0 where an untrained generator must not change the executor.

    Example:
        >>> from straw_jax import GeneratedLeaf
        >>> from straw_jax.kinds import Mixture, Shared
        >>> leaf = GeneratedLeaf("W", (64, 32), Mixture(3))
        >>> leaf.shared["templates"] == Shared((3, 64, 32), fan_in=64)
        True
    """

    shape: tuple[int, ...]
    fan_in: int
    zero: bool = False


@dataclass(frozen=True)
class Start:
    """Of which size an array is before training: `offset + mean + scale * u`.

    `u` is what a generator computes. It has a standard deviation of 1, or is 0 at the start.

    Attributes:
        scale: of what is computed, at the start and in all steps of training.
        mean: added, beside the offset of `Written`.
        zero: whether `u` is 0 at the start.

    Example:
        A layer that sums 64 inputs, without and with base weights:

        >>> from straw_jax import GeneratedLeaf, LowRank
        >>> leaf = GeneratedLeaf("W", (64, 32), LowRank(4))
        >>> leaf.starts()
        {'B': Start(scale=0.125, mean=0.0, zero=False), 'A': Start(scale=0.5, mean=0.0, zero=False)}
        >>> leaf.starts(start_at_base=True)["A"]
        Start(scale=0.5, mean=0.0, zero=True)
    """

    scale: float
    mean: float = 0.0
    zero: bool = False


class Update:
    """The arrays that change one leaf, of one sample or with a sample axis in front.

    A subclass is a dataclass registered with `jax.tree_util.register_dataclass`; its arrays are
    its fields. `Kind` shows one of one's own.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors
        >>> from straw_jax.kinds import Update
        >>> update = Factors(jnp.ones((3, 2)), jnp.ones((2, 4)))
        >>> isinstance(update, Update), update.shapes((3, 4))
        (True, {'B': (3, 2), 'A': (2, 4)})
    """

    #: What a field is called in errors, where it is not by its own name.
    labels: ClassVar[Mapping[str, str]] = {}
    #: Whether it is a weight without a base, too.
    stands_alone: ClassVar[bool] = True
    #: The fields' values with which it changes nothing; without them it is in each row of a batch.
    neutral: ClassVar[Mapping[str, Any]] = {}
    #: The fields that products use as factors, never formed; they have two axes.
    factors: ClassVar[tuple[str, ...]] = ()
    #: The fields that all samples usually have in common.
    common: ClassVar[tuple[str, ...]] = ()
    #: What a weighted sum of several is: further "terms", or sums of "fields", from neutral values.
    mixing: ClassVar[str] = ""
    #: Whether each vector of a sample may have its own (`straw_jax.lowrank.PerVector`).
    per_vector: ClassVar[bool] = False

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the fields have for a leaf, without a sample axis."""
        raise NotImplementedError

    def given_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return `shapes` without those of fields that are None."""
        shapes = self.shapes(shape).items()
        return {name: each for name, each in shapes if getattr(self, name) is not None}

    def flat(self) -> "tuple[Update, ...]":
        """Return the updates of which it consists, in their order."""
        return (self,)

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        """Return a kernel with this update; arrays have no sample axis.

        Args:
            kernel: the base with the updates before this one; without terms if there is no base.
            scale: of low-rank updates.

        Returns:
            The kernel with more terms, or with changed ones.
        """
        raise NotImplementedError


class Kind:
    """A kind of update. A leaf here is a `GeneratedLeaf`.

    Example:
        A kind of one's own: one number is added to all entries of a kernel.

        >>> from dataclasses import dataclass, fields
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import factor_spec, modulate
        >>> from straw_jax.kinds import Kind, Update, Written
        >>> from straw_jax.operators import Contraction
        >>> from straw_jax.parts import Part
        >>> @jax.tree_util.register_dataclass
        ... @dataclass(frozen=True)
        ... class Shifted(Update):
        ...     shift: jax.Array
        ...     def shapes(self, shape):
        ...         return {"shift": ()}
        ...     def change(self, kernel, scale):
        ...         return kernel.plus(Contraction((Part(self.shift, (), ()),)))
        >>> class Shift(Kind):
        ...     def written(self, leaf):
        ...         return {"shift": Written(())}
        ...     def update(self, leaf, parts):
        ...         return Shifted(**parts)
        >>> spec = factor_spec({"W": jnp.zeros((3, 2))}, {"W": Shift()})
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> layer({"W": jnp.zeros((3, 2))}, spec.unpack(jnp.ones((4, 1))), jnp.ones((4, 3)))[0]
        Array([3., 3.], dtype=float32)
    """

    #: Whether its update is a weight without a base, too.
    stands_alone: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """What a table calls it."""
        return type(self).__name__

    def check(self, leaf: Any) -> None:
        """Raise a ValueError unless the kind fits a leaf."""

    def written(self, leaf: Any) -> dict[str, Written]:
        """Return what is generated for each sample, by name."""
        raise NotImplementedError

    def shared(self, leaf: Any) -> dict[str, Shared]:
        """Return what all samples share, by name."""
        return {}

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        """Return the sizes of the arrays before training, by name, written and shared.

        Args:
            leaf: a `GeneratedLeaf`.
            plain: mean and standard deviation of the leaf in the untrained plain model, which the
                update alone shall have, too; None if it shall change nothing.
        """
        unchanged = plain is None
        return {
            name: Start(0.1, zero=part.always_zero or (unchanged and part.zero))
            for name, part in self.written(leaf).items()
        } | {
            name: Start(part.fan_in**-0.5, zero=unchanged and part.zero)
            for name, part in self.shared(leaf).items()
        }

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Any:
        """Return the update made of arrays by name, written and shared."""
        raise NotImplementedError

    def parts(self, update: Any) -> dict[str, Any]:
        """Return an update's arrays by name: by default its fields that are no settings."""
        arrays = (field.name for field in fields(update) if not field.metadata.get("static"))
        given = ((name, getattr(update, name)) for name in arrays)
        return {name: array for name, array in given if array is not None}


def stack_axis(leaf: Any) -> int | None:
    """Return the axis of stacked layers in arrays that have it in front: 0, or None."""
    return 0 if "s" in leaf.axes else None


def misfit(where: str, leaf: Any, expected: str, hint: str) -> ValueError:
    """Return the error for a leaf that a kind does not fit."""
    return ValueError(
        f"factor_spec: expected {where} to be {expected}, got {leaf.path} of shape {leaf.shape}."
        f" {hint}"
    )
