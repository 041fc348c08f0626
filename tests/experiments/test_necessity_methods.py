import jax
import jax.numpy as jnp
import numpy as np
import pytest

from straw_experiments.necessity.models import MATCHED, METHODS
from straw_experiments.necessity.networks import FlatPose, Mlp
from straw_experiments.necessity.sizes import BUDGETS, Sizes, counts, multiply_adds_of, sized
from straw_experiments.necessity.tasks import TASKS, Episodes, Task
from straw_jax import affine, factor_spec, linen, modulate, resample
from straw_jax.factors import named_leaves

TINY = Sizes(hidden=5, encoder=6, style=4, rank=2)
WITHIN = {"parameters": 0.02, "multiply-adds": 0.05}
CELLS = [
    (task, name)
    for task in TASKS
    for name, method in METHODS.items()
    if method.applies(TASKS[task])
]
TRAINED = [name for name in METHODS if name != "neighbours"]
WRITTEN = ["bias", "low_rank", "delta_gain", "weight_rnn", "attention"]
LAYERS = "trunk/first", "trunk/second", "last"


def tiny(name="tiny", **options):
    chosen = {"inputs": 4, "outputs": 3, "length": 6, "queries": 5, "side": 2} | options
    return Task(name=name, build=lambda: None, help="", **chosen)


TASK, VALUES = tiny(), tiny(outputs=1, side=None, regression=True)


def drawn(task=TASK, tasks=3, length=None):
    rng = np.random.default_rng(0)
    length = task.length if length is None else length

    def numbers(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def answers(count):
        if task.regression:
            return numbers(tasks, count, 1)
        return rng.integers(0, task.outputs, (tasks, count), np.int32)

    y = answers(length)
    shown = y if task.regression else np.eye(task.outputs, dtype=np.float32)[y]
    return Episodes(
        numbers(tasks, length, task.inputs),
        shown,
        numbers(tasks, task.queries, task.inputs),
        answers(task.queries),
    )


def trained(method, episodes):
    """Random parameters in the place of trained ones: what starts at 0 is no longer 0."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32),
        jax.eval_shape(method.init, jax.random.key(0), episodes),
    )


def built(name, task=TASK):
    method, episodes = METHODS[name].build(task, TINY), drawn(task)
    params = trained(method, episodes)
    return method, params, episodes, np.asarray(jax.jit(method.apply)(params, episodes))


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def trunk(params, x):
    return np.maximum(dense(params["second"], np.maximum(dense(params["first"], x), 0)), 0)


def normed(layer, x):
    x = x - x.mean(-1, keepdims=True)
    return layer["scale"] * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) + layer["bias"]


def misfits(task, name, size):
    costs = counts(name, TASKS[task], sized(name, TASKS[task], size))
    found = dict(zip(MATCHED, costs, strict=False))
    budget = dict(zip(MATCHED, BUDGETS[size], strict=True))
    if name != "neighbours":
        sizes = sized(name, TASKS[task], size)
        assert multiply_adds_of(name, TASKS[task], sizes) == costs.multiply_adds
    return {
        what: found[what]
        for what in METHODS[name].matched
        if abs(found[what] / budget[what] - 1) > WITHIN[what]
    }


@pytest.mark.parametrize(("task", "name"), [cell for cell in CELLS if cell[0] == "labels"])
def test_methods_have_the_parameters_and_multiply_adds_of_the_budget(task, name):
    assert not misfits(task, name, "small")


@pytest.mark.slow
@pytest.mark.parametrize("size", BUDGETS)
def test_methods_have_those_of_the_budget_on_all_tasks(size):
    assert not {cell: wrong for cell in CELLS if (wrong := misfits(*cell, size))}


def test_sizes_on_permuted_labels_are_those_of_the_results():
    assert {name: tuple(sized(name, TASKS["labels"], "small")) for name in METHODS} == {
        "static": (65, 0, 0, 0),
        "static_wide": (162, 0, 0, 0),
        "pooled": (59, 118, 32, 0),
        "bias": (65, 106, 32, 0),
        "gain": (65, 95, 32, 0),
        "low_rank": (65, 78, 16, 2),
        "shared_low_rank": (65, 85, 32, 16),
        "mixture": (65, 23, 8, 2),
        "pose": (65, 105, 32, 0),
        "whole": (65, 91, 16, 0),
        "delta": (65, 483, 64, 0),
        "delta_gain": (65, 80, 32, 0),
        "weight_rnn": (65, 79, 16, 2),
        "attention": (56, 509, 64, 16),
        "gradient": (65, 0, 0, 3),
        "neighbours": (0, 0, 0, 0),
    }


def test_a_method_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected mixture to fit into 60,000 parameters on broad"):
        sized("mixture", tiny("broad", inputs=16_000), "small")


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_part_of_a_method(name):
    method, episodes = METHODS[name].build(TASK, TINY), drawn()

    @jax.jit
    @jax.value_and_grad
    def loss(params, episodes):
        answers = jax.nn.log_softmax(method.apply(params, episodes))
        return -jnp.mean(jnp.take_along_axis(answers, episodes.y[..., None], -1))

    value, slopes = loss(trained(method, episodes), episodes)
    assert np.isfinite(value)
    for path, slope in named_leaves(slopes).items():
        assert np.all(np.isfinite(slope)), path
        assert np.any(slope != 0), path


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_contexts_of_any_length(name):
    method = METHODS[name].build(TASK, TINY)
    params = jax.eval_shape(method.init, jax.random.key(0), drawn())
    for tasks, length in (1, 1), (3, 12):
        episodes = drawn(tasks=tasks, length=length)
        answers = jax.eval_shape(method.apply, params, episodes)
        assert answers.shape == (tasks, TASK.queries, TASK.outputs)


@pytest.mark.parametrize("name", WRITTEN)
def test_before_training_a_context_writes_nothing(name):
    method, episodes = METHODS[name].build(TASK, TINY), drawn()
    other = episodes._replace(context_x=episodes.context_x[::-1] + 1)

    @jax.jit
    def answers():
        params = method.init(jax.random.key(0), episodes)
        return [method.apply(params, each) for each in (episodes, other)]

    np.testing.assert_allclose(*answers(), rtol=1e-5, atol=1e-6)


def test_the_delta_rule_corrects_the_last_layer_item_by_item():
    _, params, episodes, found = built("delta")
    of_last, of_trunk = params["_Last_0"], params["Trunk_0"]
    writer = of_last["writer"]
    for task in range(3):
        seen = trunk(of_trunk, episodes.context_x[task])
        y = episodes.context_y[task]
        hidden = np.maximum(dense(writer["hidden"], np.concatenate([seen, y], -1)), 0)
        written = dense(writer["written"], np.concatenate([hidden, y], -1))
        W = np.zeros((TINY.hidden, TASK.outputs))
        for features, numbers in zip(normed(of_last["norm"], seen), written, strict=True):
            key = features / np.sqrt(np.sum(features**2) + 1e-6)
            strength = 1 / (1 + np.exp(-numbers[-1]))
            W = W + strength * np.outer(key, numbers[:-1] - key @ W)
        asked = normed(of_last["norm"], trunk(of_trunk, episodes.x[task]))
        expected = asked @ (of_last["kernel"] + W) + of_last["bias"]
        np.testing.assert_allclose(found[task], expected, rtol=1e-3, atol=1e-4)


def test_the_weight_space_rnn_reads_item_by_item():
    _, params, episodes, found = built("weight_rnn")
    # By path and name, in the order of the packed numbers.
    shapes = {
        "last/bias": [("", (3,))],
        "last/kernel": [("B", (5, 2)), ("A", (2, 3))],
        "trunk/first/bias": [("", (5,))],
        "trunk/first/kernel": [("B", (4, 2)), ("A", (2, 5))],
        "trunk/second/bias": [("", (5,))],
        "trunk/second/kernel": [("B", (5, 2)), ("A", (2, 5))],
    }
    sizes = [np.prod(shape) for each in shapes.values() for _, shape in each]
    a = np.repeat(1 / (1 + np.exp(-params["memory"])), sizes)
    reader = params["items"]
    for task in range(3):
        w = params["first"]
        for x, y in zip(episodes.context_x[task], episodes.context_y[task], strict=True):
            read = dense(reader["style"], trunk(reader, np.concatenate([x, y])))
            w = a * w + (1 - a) * (read @ params["written"])
        parts = iter(np.split(w, np.cumsum(sizes)[:-1]))
        weights = dict(named_leaves(params["executor"]))
        for path, each in shapes.items():
            arrays = [next(parts).reshape(shape) for _, shape in each]
            weights[path] = weights[path] + (arrays[0] @ arrays[1] if arrays[1:] else arrays[0])
        executor = {
            layer: {kind: weights[f"{layer}/{kind}"] for kind in ("kernel", "bias")}
            for layer in LAYERS
        }
        of_trunk = {layer.split("/")[1]: executor[layer] for layer in list(executor)[:2]}
        expected = dense(executor["last"], trunk(of_trunk, episodes.x[task]))
        np.testing.assert_allclose(found[task], expected, rtol=1e-3, atol=1e-4)


def test_attention_adds_the_values_of_similar_items():
    _, params, episodes, found = built("attention")
    for task in range(3):
        seen, asked = (trunk(params["Trunk_0"], x[task]) for x in (episodes.context_x, episodes.x))
        y = episodes.context_y[task]
        hidden = np.maximum(dense(params["hidden"], np.concatenate([seen, y], -1)), 0)
        values = dense(params["written"], np.concatenate([hidden, y], -1))
        scores = dense(params["query"], asked) @ dense(params["key"], seen).T / TINY.rank**0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        asked = asked + dense(params["found"], weights @ values)
        np.testing.assert_allclose(found[task], dense(params["last"], asked), rtol=1e-3, atol=1e-4)


def stepped(params, x, y):
    """Weights after gradient steps on squared errors, by hand; x and y of one task."""
    weights = {path: np.array(leaf) for path, leaf in named_leaves(params["executor"]).items()}
    rates = {path: np.exp(leaf) for path, leaf in named_leaves(params["log_rates"]).items()}
    for step in range(TINY.rank):
        W1, W2, W3 = (
            weights[f"{layer}/kernel"] for layer in ("trunk/first", "trunk/second", "last")
        )
        b1, b2, b3 = (weights[f"{layer}/bias"] for layer in ("trunk/first", "trunk/second", "last"))
        one = np.maximum(x @ W1 + b1, 0)
        two = np.maximum(one @ W2 + b2, 0)
        back3 = 2 * (two @ W3 + b3 - y) / y.size
        back2 = back3 @ W3.T * (two > 0)
        back1 = back2 @ W2.T * (one > 0)
        slopes = {
            "last/kernel": two.T @ back3, "last/bias": back3.sum(0),
            "trunk/second/kernel": one.T @ back2, "trunk/second/bias": back2.sum(0),
            "trunk/first/kernel": x.T @ back1, "trunk/first/bias": back1.sum(0),
        }  # fmt: skip
        weights = {path: leaf - rates[path][step] * slopes[path] for path, leaf in weights.items()}
    return {
        "last": {kind: weights[f"last/{kind}"] for kind in ("kernel", "bias")},
        "trunk": {
            layer: {kind: weights[f"trunk/{layer}/{kind}"] for kind in ("kernel", "bias")}
            for layer in ("first", "second")
        },
    }


def test_gradient_steps_are_those_of_the_squared_error():
    _, params, episodes, found = built("gradient", VALUES)
    for task in range(3):
        weights = stepped(params, episodes.context_x[task], episodes.context_y[task])
        expected = dense(weights["last"], trunk(weights["trunk"], episodes.x[task]))
        np.testing.assert_allclose(found[task], expected, rtol=1e-3, atol=1e-4)


def test_neighbours_answer_with_the_nearest_label_or_mean_value():
    *_, episodes, found = built("neighbours")
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (episodes.x, episodes.context_x)]
    for task in range(3):
        cosines = (episodes.x / norms[0])[task] @ (episodes.context_x / norms[1])[task].T
        np.testing.assert_array_equal(found[task], episodes.context_y[task][cosines.argmax(-1)])
    *_, episodes, found = built("neighbours", VALUES)
    for task in range(3):
        for x, answer in zip(episodes.x[task], found[task], strict=True):
            near = np.argsort(np.sum((episodes.context_x[task] - x) ** 2, -1))[:3]
            np.testing.assert_allclose(answer, episodes.context_y[task][near].mean(0), rtol=1e-5)


def test_a_pose_resamples_the_images_that_the_first_layer_reads():
    executor, x = linen(Mlp(5, 3)), drawn().x
    params = executor.init(jax.random.key(0), x)
    matrices = affine(jnp.array([30.0, -70.0, 170.0]))
    spec = factor_spec(params, {"trunk/first/kernel": FlatPose(2)})
    factors = {"trunk/first/kernel": spec.leaves[0].assemble({"pose": matrices})}
    found = jax.jit(modulate(executor.apply))(params, factors, x)
    turned = jax.jit(jax.vmap(resample))(jnp.moveaxis(x.reshape(3, 5, 2, 2), 1, -1), matrices)
    expected = executor.apply(params, jnp.moveaxis(turned, -1, 1).reshape(3, 5, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
