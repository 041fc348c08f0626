"""The tasks on which kinds of modulation are compared: one entry each, drawn without end.

Only the standard library is imported; the draws, which import JAX, are in `draws`.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from straw_experiments.runner.registry import Entry, Registry, lazily

if TYPE_CHECKING:
    from jax import Array

PARTS = ("train", "validation", "test")


class Episodes(NamedTuple):
    """Contexts of some tasks, and queries of the same.

    Attributes:
        context_x: Inputs of the items shown, float32 `[tasks, m, inputs]`.
        context_y: Their answers, float32 `[tasks, m, outputs]`: classes as one-hot vectors, or
            values; zeros where contexts carry no answers.
        x: Inputs of the queries, float32 `[tasks, q, inputs]`.
        y: Their answers: classes, int32 `[tasks, q]`, or values, float32 `[tasks, q, 1]`.
    """

    context_x: "Array"
    context_y: "Array"
    x: "Array"
    y: "Array"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Entry):
    """A kind of tasks that differ in one hidden thing, which the context shows.

    Attributes:
        build: `(data, key, *, tasks, length, queries) -> Episodes`; pure, and can be jitted with
            its numbers static. `draw` calls it.
        inputs: Length of an input.
        outputs: Length of a prediction: logits, or one value.
        length: Items of a context in training.
        queries: Of each task.
        labelled: Whether contexts carry answers.
        side: Of the square images that the inputs are, or None.
        regression: Whether answers are values.
    """

    inputs: int
    outputs: int
    length: int
    queries: int
    labelled: bool = True
    side: int | None = None
    regression: bool = False

    def draw(self, data: Any, key: "Array", tasks: int, length: int | None = None) -> Episodes:
        """Draw tasks; pure, so that `jax.jit` may hold it.

        Args:
            data: One part of what `sources.load` returns for this task.
            key: A random key; the same one draws the same tasks.
            tasks: How many.
            length: Items of each context; by default those of training.
        """
        length = self.length if length is None else length
        return self.build(data, key, tasks=tasks, length=length, queries=self.queries)


def _draw(function: str) -> Any:
    return lazily("straw_experiments.necessity.draws", function)


_SIDE = 14
_IMAGES: dict[str, Any] = {"inputs": _SIDE * _SIDE, "side": _SIDE}

TASKS: Registry[Task] = Registry(
    [
        Task(
            name="few_shot",
            build=_draw("few_shot"),
            label="new classes",
            colour="#0077BB",
            help="five classes of characters, five labelled images of each; tested on 15 classes"
            " that training never sees",
            outputs=5,
            length=25,
            queries=15,
            **_IMAGES,
        ),
        Task(
            name="labels",
            build=_draw("labels"),
            label="permuted labels",
            colour="#33BBEE",
            help="digits whose labels are permuted anew in each task, 30 of them labelled",
            outputs=10,
            length=30,
            queries=20,
            **_IMAGES,
        ),
        Task(
            name="sine",
            build=_draw("sine"),
            label="sine regression",
            colour="#009988",
            help="a sine of unknown amplitude and phase, ten points of it shown",
            inputs=1,
            outputs=1,
            length=10,
            queries=10,
            regression=True,
        ),
        Task(
            name="rotation",
            build=_draw("rotation"),
            label="rotation",
            colour="#EE7733",
            help="digits, all of a task rotated by one angle within 180 degrees; ten others shown,"
            " without labels",
            outputs=10,
            length=10,
            queries=20,
            labelled=False,
            **_IMAGES,
        ),
        Task(
            name="signs",
            build=_draw("signs"),
            label="signs of blocks",
            colour="#CC3311",
            help="digits with the same blocks of pixels negated in all images of a task; ten others"
            " shown, without labels",
            outputs=10,
            length=10,
            queries=20,
            labelled=False,
            **_IMAGES,
        ),
        Task(
            name="cipher",
            build=_draw("cipher"),
            label="cipher",
            colour="#EE3377",
            help="the next letter of a text whose alphabet is permuted, after 4 letters; 200"
            " letters of it shown",
            inputs=4 * 27,
            outputs=27,
            length=196,
            queries=32,
        ),
    ]
)
