"""Fields that are fitted to each image by itself, from several starts, beside written ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from straw_experiments.fields.evaluate import Params, psnr, scaled
from straw_experiments.fields.networks import grid, siren
from straw_experiments.runner.timing import fastest
from straw_jax import Straw

STEPS = (0, 1, 3, 10, 30, 100)  # after which PSNR is measured
RATES = (1e-3, 3e-3, 1e-2)  # of Adam
_SHOWN_RATE = 3e-3  # of fields that are drawn


def make_fit(
    sizes: Sequence[int], image: tuple[int, int]
) -> Callable[[Params, Array, Array], tuple[Params, Array]]:
    """Return the compiled fit of fields to images, all weights by Adam at one rate.

    Args:
        sizes: of the hidden layers.
        image: height and width.

    Returns:
        `(weights, images [n, h, w], rate) -> (weights, PSNR [n, len(STEPS)])`; weights have an axis
        of images in front.
    """
    points = jnp.asarray(grid(*image))
    read = siren(sizes).apply
    black = jnp.zeros((1, 1))

    def of_image(weights: Params, pixels: Array, rate: Array) -> tuple[Params, Array]:
        def error(weights: Params) -> Array:
            return jnp.mean((read(weights, black, points=points)[0] - pixels) ** 2)

        adam = optax.scale_by_adam()

        def fitted(gradient: Any, state: Any, weights: Params, rate: Array) -> tuple[Params, Any]:
            with jax.numpy_dtype_promotion("standard"):  # Adam raises a float to an integer
                change, state = adam.update(gradient, state)
            return jax.tree.map(lambda w, c: w - rate * c, weights, change), state

        def step(carried: Any, number: Array) -> tuple[Any, Array]:
            weights, state = carried
            loss, gradient = jax.value_and_grad(error)(weights)
            weights, state = fitted(gradient, state, weights, rate)
            return (weights, state), loss

        (weights, _), errors = jax.lax.scan(
            step, (weights, adam.init(weights)), jnp.arange(STEPS[-1])
        )
        errors = jnp.append(errors, error(weights))
        return weights, psnr(errors[jnp.asarray(STEPS)])

    @jax.jit
    def fit(weights: Params, images: Array, rate: Array) -> tuple[Params, Array]:
        return jax.vmap(of_image, in_axes=(0, 0, None))(
            weights, images.reshape(len(images), -1), rate
        )

    return fit


class Images(NamedTuple):
    """Images that are fitted, uint8 `[n, h, w]`: by some the rate is chosen, others are tested."""

    choosing: np.ndarray
    tested: np.ndarray


def measure(
    straw: Straw, sizes: Sequence[int], params: Params, images: Images, seed: int
) -> dict[str, Any]:
    """Fit fields to images from three starts, and time fitting and writing.

    Args:
        straw: from `networks.writer`.
        sizes: of the hidden layers.
        params: its trained parameters.
        images: as many to choose by as to test on.
        seed: decides SIREN's own initial values.

    Returns:
        "curves": by start, "siren" (initial values of its own for each image), "base" (the trained
        base) and "written" (the image's written field), lists along `STEPS` of "psnr", the mean in
        dB, and "rate". "reached": by start, steps after which fitting first has the PSNR of written
        fields without a step; None if it never has. "seconds": of a "step" of fitting and of
        a "forward" pass that writes weights, for "one" image and for "batch", all tested images.
    """
    count, shape = len(images.tested), images.tested.shape[1:]
    write = jax.jit(jax.vmap(straw.merge, in_axes=(None, 0)))
    fit = make_fit(sizes, (shape[0], shape[1]))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 5), count)
    own = jax.vmap(siren(sizes).init, in_axes=(0, None))(keys, jnp.zeros((1, 1)))
    base = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), params["executor"])
    scores = {}
    for start in ("siren", "base", "written"):
        for which, each in zip(("choosing", "tested"), map(scaled, images), strict=True):
            weights = {"siren": own, "base": base}.get(start) or write(params, each)
            found = [fit(weights, each, jnp.float32(rate))[1].mean(axis=0) for rate in RATES]
            scores[start, which] = np.asarray(found)
    curves = {
        start: _best(scores[start, "choosing"], scores[start, "tested"]) for start, _ in scores
    }
    batch = scaled(images.tested)
    weights = write(params, batch)

    def seconds(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
        first = jax.tree.map(lambda leaf: leaf[:1], arguments[1:])
        return {
            "one": fastest(lambda: function(arguments[0], *first)),
            "batch": fastest(lambda: function(*arguments)),
        }

    forward = seconds(write, params, batch)
    whole = seconds(
        lambda rate, weights, each: fit(weights, each, rate), jnp.float32(0), weights, batch
    )
    return {
        "curves": curves,
        "reached": {
            start: _reached(curve["psnr"], curves["written"]["psnr"][0])
            for start, curve in curves.items()
        },
        "seconds": {
            "forward": forward,
            "step": {name: each / STEPS[-1] for name, each in whole.items()},
        },
        "images": count,
    }


def pictures(
    straw: Straw,
    sizes: Sequence[int],
    params: Params,
    images: Mapping[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Read fields of some images: written ones, and such as are fitted from the trained base.

    Args:
        straw: from `networks.writer`.
        sizes: of the hidden layers.
        params: its trained parameters.
        images: uint8 `[n, h, w]` by name.

    Returns:
        By name of images, intensities `[n, height, width]`: "image", "written" and "fitted", and
        the last two at four times the resolution, "written x 4" and "fitted x 4".
    """
    height, width = next(iter(images.values())).shape[1:]
    batch = scaled(np.concatenate(list(images.values())))
    written = jax.jit(jax.vmap(straw.merge, in_axes=(None, 0)))(params, batch)
    base = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(batch)), params["executor"])
    fitted, _ = make_fit(sizes, (height, width))(base, batch, jnp.float32(_SHOWN_RATE))
    apply, black = siren(sizes).apply, jnp.zeros((1, 1))

    def read(weights: Params, times: int) -> np.ndarray:
        shape = times * height, times * width
        points = jnp.asarray(grid(*shape))
        of_one = jax.jit(jax.vmap(lambda each: apply(each, black, points=points)[0]))
        return np.asarray(of_one(weights)).reshape(len(batch), *shape)

    shown = {"image": np.asarray(batch)}
    for which, weights in (("written", written), ("fitted", fitted)):
        shown |= {which: read(weights, 1), f"{which} x 4": read(weights, 4)}
    borders = np.cumsum([len(each) for each in images.values()])[:-1]
    parts = {which: np.split(each, borders) for which, each in shown.items()}
    return {
        name: {which: each[place] for which, each in parts.items()}
        for place, name in enumerate(images)
    }


def _best(choosing: np.ndarray, tested: np.ndarray) -> dict[str, list[float]]:
    """Return the curve at the rate that is best on other images, for each number of steps."""
    best = choosing.argmax(axis=0)
    steps = np.arange(len(STEPS))
    return {
        "psnr": [float(each) for each in tested[best, steps]],
        "rate": [RATES[each] for each in best],
    }


def _reached(curve: Sequence[float], level: float) -> int | None:
    return next((step for step, psnr in zip(STEPS, curve, strict=True) if psnr >= level), None)
