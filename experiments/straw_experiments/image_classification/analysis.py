"""What a trained STRAW's modulator does: its costs, its updates, and what they depend on.

Everything is of the test images, evenly strided within each class. Updates are measured as they
are applied, with the scale 1 that all models have.
"""

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from straw_experiments.data.variants import blur, rotate
from straw_experiments.image_classification.controls import exchanged
from straw_experiments.image_classification.distortions import measure, predicts_poses
from straw_experiments.image_classification.evaluate import evaluate, in_batches, score
from straw_experiments.image_classification.models import executor_of
from straw_experiments.image_classification.step import as_input
from straw_experiments.image_classification.study import Study
from straw_experiments.runner.batches import batches
from straw_experiments.runner.state import Variables
from straw_experiments.runner.tables import over_seeds
from straw_jax import analysis
from straw_jax.costs import multiply_adds
from straw_jax.factors import Entry, FactorSpec, FactorTree, GeneratedLeaf, named_leaves
from straw_jax.lift import modulate
from straw_jax.lowrank import Generated
from straw_jax.network import Network, linen
from straw_jax.straw import Base, Straw

ANGLES = (0, 10, 20, 30, 40, 50, 60)  # degrees
SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0)  # pixels

_SIGNS, _PAIRS = 0, 1  # streams of random numbers: the same for all models and runs
_BATCH = 64  # a batch of formed factors takes 40 MB at rank 16


def analyse(study: Study, images: int) -> dict[str, Any]:
    """Analyse every finished run of an study.

    Args:
        study: With at least one finished run.
        images: Test images for accuracies; half as many are taken for updates. About, since each
            class gives as many.

    Returns:
        What `analysis.json` holds, its measured figures as from `statistic`. "turned" is
        the accuracy by angle of each model, see `rotated_accuracies`; "straw", for each STRAW that
        predicts no poses, has "costs" (see `costs`), "leaves" (`ranks`), "updates"
        (`update_statistics`) and "movement" (`movements`); "distortions" is from
        `distortions.measure`.

    Raises:
        ValueError: No run is finished, or there are too few images to tell classes from chance.
        CheckpointError: A finished run's variables are gone or damaged.
    """
    config, dataset = study.config, study.dataset
    seeds = {name: _finished(study, name) for name in config.models}
    seeds = {name: found for name, found in seeds.items() if found}
    if not seeds:
        raise ValueError(f"{config.out} has no finished run. Finish one with run.py --resume")
    groups = evenly(dataset.test_labels, images // 2)
    chosen, tested = (
        np.concatenate(some) for some in (groups, evenly(dataset.test_labels, images))
    )
    if len(chosen) <= len(groups):
        raise ValueError(
            f"--images: expected at least two test images of each of {len(groups)} classes to"
            f" compare updates, got {len(chosen)} in all. Choose more, or test on more images"
        )
    signs = np.random.default_rng(_SIGNS).choice([-1.0, 1.0], len(dataset.test_labels))

    def rotated(which: np.ndarray) -> dict[int, np.ndarray]:
        upright = dataset.test_images[which]
        return {angle: rotate(upright, angle * signs[which]) for angle in ANGLES}

    straws: dict[str, Any] = {}
    for name in seeds:
        if (straw := study.straw(name)) and not predicts_poses(straw):
            labels, changed = dataset.test_labels[chosen], _changed(rotated(chosen))
            updates, moved = [], []
            for seed in seeds[name]:
                _say(f"{name} seed {seed}: updates of {len(chosen):,} test images")
                variables = study.run(name, seed).variables()
                updates.append(update_statistics(straw, variables, dataset.test_images, groups))
                _say(f"{name} seed {seed}: how they move with rotation and blur")
                moved.append(movements(straw, variables, changed, labels))
            straws[name] = {
                "costs": costs(
                    straw,
                    executor_of(name, **study.sizes()),
                    config.base,
                    dataset.test_images.shape[1:],
                ),
                "leaves": ranks(straw.spec),
                "updates": over_seeds(updates),
                "movement": over_seeds(moved),
            }
    rotated_images, labels = rotated(tested), dataset.test_labels[tested]
    accuracies: dict[str, Any] = {}
    for name, found in seeds.items():
        by_seed = []
        for seed in found:
            _say(f"{name} seed {seed}: accuracy by angle on {len(tested):,} test images")
            by_seed.append(rotated_accuracies(study, name, seed, rotated_images, labels))
        accuracies[name] = over_seeds(by_seed)
    return {
        "dataset": dataset.name,
        "base": config.base,
        "reference": "base weights" if config.base == "trained" else "mean update",
        "seeds": seeds,
        "images": {"updates": len(chosen), "accuracy": len(tested)},
        "largest_standard_error": 0.5 / math.sqrt(len(tested)),
        "angles": list(ANGLES),
        "sigmas": list(SIGMAS),
        "straw": straws,
        "turned": accuracies,
        "distortions": measure(study, seeds, tested, _say),
    }


def evenly(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Choose about `count` samples, evenly strided within each class, of each as many.

    Args:
        labels: int [n].
        count: How many in all; a class gives at least 2, or all that it has.

    Returns:
        For each class that has samples, positions int64 [m].
    """
    classes = np.unique(labels)
    members = [np.flatnonzero(labels == label) for label in classes]
    each = max(count // len(classes), 2)
    return [
        found[np.arange(min(each, len(found))) * len(found) // min(each, len(found))]
        for found in members
    ]


def ranks(spec: FactorSpec) -> dict[str, dict[str, Any]]:
    """Return shape, "rank", and "largest" possible rank of each generated leaf, by path."""

    def largest(leaf: GeneratedLeaf) -> int | None:
        return min(leaf.rank, leaf.rows, leaf.columns) if isinstance(leaf.rank, int) else None

    return {
        leaf.path: {"shape": list(leaf.shape), "rank": leaf.rank, "largest": largest(leaf)}
        for leaf in spec
    }


def costs(
    straw: Straw, executor: nn.Module, base: Base, image: Sequence[int] = (28, 28, 1)
) -> list[dict[str, Any]]:
    """Count what a STRAW costs, part by part, against two other ways.

    Multiply-adds are counted in jaxprs, those of matrix products and convolutions.

    Args:
        straw: The model.
        executor: Its executor.
        base: Its base.
        image: Shape of what it classifies.

    Returns:
        Rows "encoder", "hidden" (the generator's hidden layer), each layer of the executor, and
        "total". Each has "layer", "dense_numbers" (weights in the executor's layer),
        "generated_numbers" (that the generator writes for one sample), and three forms: "whole"
        (generate each sample's whole kernel, then apply it), "factors" (what the library does) and
        "static" (one executor for all samples). A form has "parameters" (trained), "multiply_adds"
        (a sample, forward) and "bytes" (of weights that are one sample's own, in the dtype in which
        they are generated; for "factors" an upper bound, as the library does not form `B` where a
        layer sees one vector a sample).
    """
    network, one = linen(executor), jax.ShapeDtypeStruct((1, *image), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), one)
    params = jax.eval_shape(straw.init, jax.random.key(0))
    first = params["generator"]["hidden"]
    hidden_size = first["kernel"].shape[1]
    written = jax.tree.leaves(jax.eval_shape(straw.factors, params, one))[0].dtype.itemsize
    encoder = _form(_size(params["encoder"]), multiply_adds(straw.styles, params, one), 0)
    hidden = _form(_size(first), math.prod(first["kernel"].shape), 0)
    rows = [_row(name, 0, 0, form, form, _form(0, 0, 0)) for name, form in
            (("encoder", encoder), ("hidden", hidden))]  # fmt: skip
    for layer, group in itertools.groupby(straw.spec, lambda leaf: leaf.path.rpartition("/")[0]):
        rows.append(
            _layer_row(layer, list(group), network, shapes, one, hidden_size, base, written)
        )
    total = {
        key: sum(row[key] for row in rows) for key in ("dense_numbers", "generated_numbers")
    } | {
        form: {key: sum(row[form][key] for row in rows) for key in encoder}
        for form in ("whole", "factors", "static")
    }
    return [*rows, {"layer": "total", **total}]


def _layer_row(
    layer: str,
    leaves: Sequence[GeneratedLeaf],
    executor: Network,
    shapes: Any,
    image: jax.ShapeDtypeStruct,
    hidden_size: int,
    base: Base,
    bytes_each: int,
) -> dict[str, Any]:
    spec = FactorSpec(tuple(leaves))
    dense, generated = sum(leaf.dense_size for leaf in spec), spec.size
    factors = {leaf.path: leaf.assemble(_generated(leaf, hidden_size)) for leaf in spec}

    def with_base(params: Any, factors: FactorTree, x: Any) -> Any:
        return modulate(executor.apply)(params, factors, x)

    def without_base(params: Any, factors: FactorTree, x: Any) -> Any:
        bare = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if path in factors else leaf
            for path, leaf in named_leaves(params).items()
        ]
        return with_base(jax.tree.unflatten(jax.tree.structure(params), bare), factors, x)

    # The executor with only this layer generated: what is added, and what its base takes away.
    all_static = multiply_adds(executor.apply, shapes, image)
    added_to_base = multiply_adds(with_base, shapes, factors, image)
    static = added_to_base - multiply_adds(without_base, shapes, factors, image)
    whole_leaves = sum(leaf.dense_size for leaf in spec if leaf.rank == "whole")
    lowrank = added_to_base - all_static + hidden_size * whole_leaves
    kept = base == "trained"
    return _row(
        layer,
        dense,
        generated,
        whole=_form(
            (hidden_size + 1) * dense + kept * dense,
            hidden_size * dense + static,
            bytes_each * dense,
        ),
        factors=_form(
            (hidden_size + 1) * generated + kept * dense,
            lowrank + kept * static,
            bytes_each * generated,
        ),
        static=_form(dense, static, 0),
    )


def _generated(leaf: GeneratedLeaf, hidden_size: int) -> dict[str, Any]:
    """Shapes of a leaf's parts for one sample, as the generator hands them to the executor."""

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    return {
        name: shape(1, *part)
        if name == "whole"
        else Generated(shape(1, hidden_size), shape(*part, hidden_size), shape(*part))
        for name, part in leaf.parts.items()
    }


def update_statistics(
    straw: Straw, variables: Variables, images: np.ndarray, groups: Sequence[np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Measure the updates that a trained STRAW writes.

    Args:
        straw: The model.
        variables: The trained model's.
        images: uint8 [n, 28, 28, 1].
        groups: Positions of the images to take, class by class.

    Returns:
        By path: "norm" of the updates (of all images "mean", "p5" and "p95", percentiles),
        "mean_update" (the norm of the mean update), both divided by the norm of the base weights,
        or of the mean update where there are no base weights; "variation", the root of the total
        variance divided by the norm of the mean update; "between_classes", with the plain "share"
        of that variance, the share that is "chance", and the "corrected" one (`analysis.Variance`);
        and, where the leaf is low-rank, "effective_rank" (mean, p5, p95).
    """
    factors_of = _factors_of(straw)

    norms, ranks_of = jax.jit(analysis.squared_norms), jax.jit(analysis.effective_ranks)

    def measure(variables: Variables, images: Any) -> dict[str, dict[str, jax.Array]]:
        # One program after the other: on a CPU of two cores, matrix products and factorisations
        # that run at once wait for each other's threads for ever (seen with jax 0.10.2).
        updates = jax.block_until_ready(factors_of(variables, images))
        squares = jax.block_until_ready(norms(updates))
        found = {path: {"norm": jnp.sqrt(square)} for path, square in squares.items()}
        for path, update in updates.items():
            if effective := jax.block_until_ready(ranks_of({path: update})):
                found[path]["effective_rank"] = effective[path]
        return found

    chosen = images[np.concatenate(groups)]
    measured = in_batches(measure, variables, chosen, batch_size=_BATCH)
    variances = analysis.variance(factors_of(variables, images[group]) for group in groups)
    base = named_leaves(variables["params"].get("executor", {}))
    statistics = {}
    for path, found in measured.items():
        variance = variances[path]
        unit = float(jnp.linalg.norm(base[path])) if base else variance.mean_norm or 1.0
        statistics[path] = {
            "norm": _quantiles(found.pop("norm") / unit),
            "mean_update": variance.mean_norm / unit,
            "variation": math.sqrt(variance.total) / (variance.mean_norm or 1.0),
            "between_classes": {
                "share": variance.between,
                "chance": variance.chance,
                "corrected": variance.corrected,
            },
            **{name: _quantiles(values) for name, values in found.items()},
        }
    return statistics


def movements(
    straw: Straw,
    variables: Variables,
    changed: Mapping[str, Mapping[Any, np.ndarray]],
    labels: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Measure how far updates move when their images are rotated or blurred.

    Args:
        straw: The model.
        variables: The trained model's.
        changed: By kind of change and its amount, images uint8 [n, 28, 28, 1]; of each kind the
            first are the images themselves.
        labels: int [n].

    Returns:
        By path, mean distances of an image's update from its own, divided by the mean norm of the
        images' own: for each kind of change a list by amount, and as yardsticks "same class" and
        "another image", between the images of random pairs.
    """
    factors_of = _factors_of(straw)

    @jax.jit
    def distance(left: FactorTree, right: FactorTree) -> dict[str, jax.Array]:
        squares = analysis.squared_norms(analysis.differences(left, right))
        return jax.tree.map(jnp.sqrt, squares)

    @jax.jit
    def norm(updates: FactorTree) -> dict[str, jax.Array]:
        return jax.tree.map(jnp.sqrt, analysis.squared_norms(updates))

    generator = np.random.default_rng(_PAIRS)
    own = next(iter(next(iter(changed.values())).values()))
    others: dict[Any, np.ndarray] = {
        **{(kind, amount): x for kind, by in changed.items() for amount, x in by.items()},
        "same class": own[exchanged(labels, generator)],
        "another image": own[exchanged(np.zeros_like(labels), generator)],
    }
    sums = {name: dict.fromkeys((leaf.path for leaf in straw.spec), 0.0) for name in others}
    norms = dict.fromkeys((leaf.path for leaf in straw.spec), 0.0)

    def add(to: dict[str, float], values: Mapping[str, jax.Array], real: np.ndarray) -> None:
        for path, value in values.items():
            to[path] += float(np.asarray(value)[real].sum())

    for chosen, real in batches(np.arange(len(own)), _BATCH):
        updates = factors_of(variables, own[chosen])
        add(norms, norm(updates), real)
        for name, images in others.items():
            add(sums[name], distance(updates, factors_of(variables, images[chosen])), real)

    def relative(name: Any, path: str) -> float:
        return sums[name][path] / norms[path] if norms[path] else 0.0

    return {
        path: {
            **{kind: [relative((kind, a), path) for a in by] for kind, by in changed.items()},
            **{name: relative(name, path) for name in ("same class", "another image")},
        }
        for path in norms
    }


def rotated_accuracies(
    study: Study,
    name: str,
    seed: int,
    rotated: Mapping[int, np.ndarray],
    labels: np.ndarray,
) -> dict[str, list[float]]:
    """Test a finished run on rotated images.

    Args:
        study: The run's.
        name: The model's.
        seed: The run's.
        rotated: Images uint8 [n, 28, 28, 1] by angle; the first are upright.
        labels: int [n].

    Returns:
        Accuracies by angle: "own", and for a STRAW of factors with other style vectors: "upright
        style" (for a rotated image that of the upright one), "same class style" (that of another
        upright image of its class) and "turned style" (for the upright image that of the rotated
        one). A style vector may reveal the class: what rotation does to the modulator, and what to
        the executor, is in all of them together.
    """
    run = study.run(name, seed)
    variables, upright = run.variables(), next(iter(rotated.values()))
    accuracies = {
        "own": [evaluate(run.trainer.forward, variables, x, labels).accuracy
                for x in rotated.values()]
    }  # fmt: skip
    if (straw := study.straw(name)) and not predicts_poses(straw):

        @jax.jit
        def forward(variables: Variables, images: Any, context: Any) -> jax.Array:
            return straw.apply(
                variables["params"], as_input(images), context=as_input(context)
            ).astype(jnp.float32)

        def accuracy(images: np.ndarray, context: np.ndarray) -> float:
            return score(in_batches(forward, variables, images, context), labels).accuracy

        others = upright[exchanged(labels, np.random.default_rng(_PAIRS))]
        accuracies["same class style"] = [accuracy(x, others) for x in rotated.values()]
        accuracies["turned style"] = [accuracy(upright, x) for x in rotated.values()]
        accuracies["upright style"] = [accuracy(x, upright) for x in rotated.values()]
    return accuracies


def _finished(study: Study, name: str) -> list[int]:
    seeds = [seed for seed in study.seeds if study.run(name, seed).result.exists()]
    for seed in sorted(set(study.seeds) - set(seeds)):
        _say(f"{name} seed {seed}: not finished, left out")
    return seeds


def _changed(rotated: Mapping[int, np.ndarray]) -> dict[str, Mapping[Any, np.ndarray]]:
    upright = rotated[0]
    blurred = {s: blur(upright, np.full(len(upright), s)) for s in SIGMAS if s}
    return {"rotation": rotated, "blur": {0.0: upright, **blurred}}


def _factors_of(straw: Straw) -> Callable[[Variables, Any], FactorTree]:
    @jax.jit
    def factors_of(variables: Variables, images: Any) -> dict[str, Entry]:
        return straw.factors(variables["params"], as_input(images))

    return factors_of


def _quantiles(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values, [5, 95])
    return {"mean": float(np.mean(values)), "p5": float(low), "p95": float(high)}


def _row(
    layer: str,
    dense: int,
    generated: int,
    whole: Mapping[str, int],
    factors: Mapping[str, int],
    static: Mapping[str, int],
) -> dict[str, Any]:
    return {
        "layer": layer,
        "dense_numbers": dense,
        "generated_numbers": generated,
        "whole": whole,
        "factors": factors,
        "static": static,
    }


def _form(parameters: int, multiply_adds: int, size: int) -> dict[str, int]:
    return {"parameters": parameters, "multiply_adds": multiply_adds, "bytes": size}


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
