"""The methods that `necessity.py` compares: one entry each.

To add one, add its entry to `METHODS`. JAX is imported when a method is built.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from straw_experiments.necessity.tasks import Task
from straw_experiments.runner.registry import Entry, Registry, lazily

if TYPE_CHECKING:
    from jax import Array

MATCHED = ("parameters", "multiply-adds")


class Method(NamedTuple):
    """Pure functions that answer the queries of tasks from their contexts.

    Attributes:
        init: `(key, episodes) -> params`, a dict; empty where nothing is trained.
        apply: `(params, episodes) -> predictions [tasks, q, outputs]`, logits or values. It takes
            contexts of any length, reads each once, and does not look at `episodes.y`.
    """

    init: Callable[..., Any]
    apply: Callable[..., "Array"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Entry):
    """A way to use a context.

    Attributes:
        build: `(task, sizes) -> Method`, see `sizes.sized`.
        applies: `(task) -> bool`: whether the method can be used there.
        matched: What of `MATCHED` it has as all others have; the rest cannot be matched.
    """

    applies: Callable[[Task], bool] = lambda task: True
    matched: tuple[str, ...] = MATCHED


def _generated(kind: str) -> Any:
    return partial(lazily("straw_experiments.necessity.networks", "generated"), kind=kind)


def _rival(function: str) -> Any:
    return lazily("straw_experiments.necessity.rivals", function)


def _labelled(task: Task) -> bool:
    return task.labelled


METHODS: Registry[Model] = Registry(
    [
        Model(
            name="static",
            build=_rival("static"),
            label="static",
            colour="#777777",
            help="one network for all tasks; it does not see the context",
            matched=("multiply-adds",),
        ),
        Model(
            name="static_wide",
            build=_rival("static"),
            label="static, wide",
            colour="#222222",
            help="a wider one, of as many parameters as the others and more multiply-adds",
            matched=("parameters",),
        ),
        Model(
            name="pooled",
            build=_rival("pooled"),
            label="pooled features",
            colour="#BBBBBB",
            help="a static network; the context's pooled features are inputs beside the query",
        ),
        Model(
            name="bias",
            build=_generated("bias"),
            label="biases",
            colour="#33BBEE",
            help="the context writes all biases, as a style beside each layer's inputs would",
        ),
        Model(
            name="gain",
            build=_generated("gain"),
            label="gains",
            colour="#0077BB",
            help="gains of all layers' outputs, and biases: FiLM",
        ),
        Model(
            name="low_rank",
            build=_generated("low_rank"),
            label="low-rank",
            colour="#CC3311",
            help="low-rank updates of all kernels, and biases",
        ),
        Model(
            name="shared_low_rank",
            build=_generated("shared_low_rank"),
            label="shared low-rank",
            colour="#EE7733",
            help="low-rank updates in bases that all tasks share, and biases",
        ),
        Model(
            name="mixture",
            build=_generated("mixture"),
            label="mixture",
            colour="#AA3377",
            help="sums of templates that all tasks share, and biases",
        ),
        Model(
            name="pose",
            build=_generated("pose"),
            label="pose",
            colour="#009988",
            help="an affine map of the image plane in the first layer, and biases; of images alone",
            applies=lambda task: task.side is not None,
        ),
        Model(
            name="whole",
            build=_generated("whole"),
            label="whole",
            colour="#DDAA33",
            help="the last layer whole, and all biases",
        ),
        Model(
            name="delta",
            build=_rival("delta"),
            label="delta rule",
            colour="#EE3377",
            help="the context's features write the last layer by the delta rule",
        ),
        Model(
            name="delta_gain",
            build=_rival("delta_gain"),
            label="delta rule, gains",
            colour="#882255",
            help="as delta; and gains and biases of the hidden layers",
        ),
        Model(
            name="weight_rnn",
            build=_rival("weight_rnn"),
            label="weight-space RNN",
            colour="#997700",
            help="low-rank updates and biases are the state of a linear RNN over the context: WARP",
        ),
        Model(
            name="attention",
            build=_rival("attentive"),
            label="attention",
            colour="#117733",
            help="queries attend to the context, in a network whose weights all tasks share",
        ),
        Model(
            name="gradient",
            build=_rival("gradient"),
            label="gradient steps",
            colour="#332288",
            help="a few steps on the labelled context, from weights trained for them: MAML",
            applies=_labelled,
            matched=("multiply-adds",),
        ),
        Model(
            name="neighbours",
            build=_rival("neighbours"),
            label="nearest neighbours",
            colour="#999933",
            help="the label of the most similar item, or the mean of the three nearest values",
            applies=_labelled,
            matched=(),
        ),
    ]
)
