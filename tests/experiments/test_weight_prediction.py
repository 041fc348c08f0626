import functools
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from straw_experiments.weight_prediction import (
    OutputPredictor,
    Pairs,
    analysis,
    compute,
    draw,
    equivalence,
    evaluate,
    fit,
    least_squares,
    objectives,
    predict,
    target,
    unknowns,
    weight_predictor,
)
from straw_experiments.weight_prediction.evaluate import score
from straw_experiments.weight_prediction.models import MODELS
from straw_experiments.weight_prediction.networks import output_predictor
from straw_experiments.weight_prediction.objectives import outputs_objective, weights_objective
from straw_experiments.weight_prediction.targets import parse_sizes, positive, uniform

SIZES = (2, 3, 1)


def reference(weights, x):
    """What one network makes of one input, in plain numpy."""
    layers = [np.asarray(weights[f"layer{i}"], np.float64) for i in range(1, len(weights) + 1)]
    for kernel in layers[:-1]:
        x = np.maximum(x @ kernel, 0)
    return x @ layers[-1]


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=8)  # each is a program of its own
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    tasks=st.integers(1, 4),
    pairs=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_pairs_are_what_plain_networks_compute(sizes, tasks, pairs, seed):
    drawn = jax.jit(lambda key: draw(sizes, key, tasks, pairs=pairs, fresh=2))(jax.random.key(seed))
    assert sum(leaf[0].size for leaf in drawn.weights.values()) == unknowns(sizes)
    for i, (x, y) in itertools.product(range(tasks), (drawn.context, drawn.fresh)):
        weights = {name: leaf[i] for name, leaf in drawn.weights.items()}
        expected = reference(weights, np.asarray(x[i], np.float64))
        np.testing.assert_allclose(y[i], expected, atol=1e-5)


def test_targets_start_as_lecun_has_it():
    weights = _networks(0, tasks=200, sizes=(8, 50, 1))
    assert float(weights["layer1"].var()) == pytest.approx(1 / 8, rel=0.03)
    assert float(weights["layer2"].var()) == pytest.approx(1 / 50, rel=0.03)


def test_other_inputs_leave_everything_else_as_it_is():
    @jax.jit
    def drawn(key):
        usual = draw(SIZES, key, 3, pairs=4, fresh=5)
        return usual, draw(SIZES, key, 3, pairs=4, fresh=5, context_inputs=uniform)

    usual, other = drawn(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, usual.weights, other.weights)
    jax.tree.map(np.testing.assert_array_equal, usual.fresh, other.fresh)
    assert not np.array_equal(usual.context.x, other.context.x)


def test_inputs_of_other_distributions():
    x = np.asarray(uniform(jax.random.key(0), (10_000,)))
    assert abs(x).max() <= math.sqrt(3)
    assert x.var() == pytest.approx(1, rel=0.03)
    assert np.asarray(positive(jax.random.key(0), (100,))).min() >= 0


@pytest.mark.parametrize("text", ["", "5", "2-0-1", "2-x-1", "2--1", "-1"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"such as 2-5-1 .* got"):
        parse_sizes(text)


# --- predictors ---------------------------------------------------------------------------------


def test_predictor_has_the_parameters_of_the_posts():
    params = jax.eval_shape(weight_predictor((2, 5, 1)).init, jax.random.key(0))
    encoder = [(3, 128), (128, 256), (256, 128)]
    decoder = [(128, 256), (256, 128), (128, 15)]
    expected = sum(m * n + n for m, n in encoder + decoder)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_prediction_knows_no_order_and_takes_sets_of_any_size(pooling):
    straw = weight_predictor(SIZES, pooling=pooling, embedding=16)
    params = jax.jit(straw.init)(jax.random.key(0))
    rng = np.random.default_rng(1)
    context = Pairs(*(rng.standard_normal((2, 7, size), np.float32) for size in (2, 1)))
    predicted = jax.jit(functools.partial(predict, straw, params))
    weights = predicted(context)
    assert {name: leaf.shape for name, leaf in weights.items()} == {
        "layer1": (2, 2, 3),
        "layer2": (2, 3, 1),
    }
    shuffled = Pairs(*(part[:, ::-1] for part in context))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        weights,
        predicted(shuffled),
    )
    fewer = predicted(Pairs(*(part[:, :3] for part in context)))
    assert fewer["layer1"].shape == (2, 2, 3)
    # Pairs that are given twice say nothing more.
    twice = Pairs(*(np.concatenate([part, part], axis=1) for part in context))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        weights,
        predicted(twice),
    )


def test_output_predictors_are_what_they_say():
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)

    def layer(params, name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def relu(x):
        return np.maximum(x, 0)

    def expected(kind, p):
        h = relu(layer(p, "input", x))
        for i in (1, 2):
            if kind == "plain":
                h = relu(layer(p, f"hidden{i}", h))
            elif kind == "concat":
                h = relu(layer(p, f"hidden{i}", np.concatenate([h, x], axis=1)))
            else:
                block = layer(p, f"block{i}b", relu(layer(p, f"block{i}a", h)))
                h = relu(block + layer(p, f"skip{i}", h))
        return layer(p, "output", np.concatenate([h, x], axis=1) if kind == "concat" else h)

    for kind in ("plain", "concat", "residual"):
        module = OutputPredictor(kind, width=5)
        found, variables = jax.jit(module.init_with_output)(jax.random.key(1), x)
        numbers = jax.tree.map(np.asarray, variables["params"])
        np.testing.assert_allclose(found, expected(kind, numbers), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected a kind of .* got 'other'"):
        OutputPredictor("other").init(jax.random.key(0), x)


# --- objectives ---------------------------------------------------------------------------------


def test_score_is_the_share_of_variance():
    y = np.array([[1.0], [2.0], [6.0]], np.float32)
    assert float(evaluate.score(y, y).explained) == 1
    assert float(evaluate.score(np.full_like(y, 3.0), y).explained) == pytest.approx(0, abs=1e-6)
    assert float(evaluate.score(y + 1, y).loss) == pytest.approx(1)


def test_objectives_draw_anew_for_every_key_and_have_gradients():
    weights = objectives.weights_objective(SIZES, 4, straw=weight_predictor(SIZES), fresh=3)
    outputs = objectives.outputs_objective(SIZES, output_predictor(SIZES, kind="residual"))
    for objective, shape in ((weights, (5, 3, 1)), (outputs, (5, 1))):

        def loss(params, key, objective=objective):
            outputs = objective.outputs(params, objective.draw(key, 5))
            return evaluate.score(*outputs).loss, outputs

        @jax.jit
        def gradient_and_outputs(key, objective=objective, loss=loss):
            return jax.grad(loss, has_aux=True)(objective.init(jax.random.key(0)), key)

        (gradient, one), (_, two) = (gradient_and_outputs(jax.random.key(i)) for i in (1, 2))
        assert one[0].shape == one[1].shape == shape
        assert not np.array_equal(one[1], two[1])
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_outputs_objective_shows_input_and_weights(monkeypatch):
    shown = []
    monkeypatch.setattr(OutputPredictor, "__call__", lambda self, x: shown.append(x) or x[:, :1])
    objective = objectives.outputs_objective(SIZES, output_predictor(SIZES, kind="plain"))

    @jax.jit
    def drawn(key):
        _, y = objective.outputs({}, objective.draw(key, 6))
        (vectors,) = shown
        return vectors, y

    vectors, y = jax.device_get(drawn(jax.random.key(3)))
    assert vectors.shape == (6, 2 + unknowns(SIZES))
    for vector, output in zip(vectors, y, strict=True):
        weights = {"layer1": vector[2:8].reshape(2, 3), "layer2": vector[8:].reshape(3, 1)}
        np.testing.assert_allclose(output, reference(weights, vector[:2]), atol=1e-5)


# --- fitting ------------------------------------------------------------------------------------


def test_fit_finds_the_network_from_nearby_and_never_gets_worse():
    sizes, rng = (2, 4, 1), np.random.default_rng(1)
    drawn = jax.jit(lambda key: draw(sizes, key, 8, pairs=40, fresh=50))(jax.random.key(0))
    near = {
        name: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32)
        for name, leaf in jax.device_get(drawn.weights).items()
    }

    @jax.jit
    def fitted(steps):
        weights = fit(sizes, near, drawn.context, steps)
        found, fresh = (compute(sizes, weights, each.x) for each in (drawn.context, drawn.fresh))
        error = jnp.mean((found - drawn.context.y) ** 2, axis=(1, 2))
        return weights, error, evaluate.score(fresh, drawn.fresh.y).explained

    weights, errors, explained = zip(*map(fitted, (0, 1, 3, 20)), strict=True)
    assert all(np.all(later <= earlier + 1e-9) for earlier, later in itertools.pairwise(errors))
    assert explained[-1] > 0.999
    jax.tree.map(np.testing.assert_array_equal, near, weights[0])


@functools.partial(jax.jit, static_argnames=("pairs", "outputs"))
def _fitted(key, *, pairs, outputs):
    context = draw((4, outputs), key, 3, pairs=pairs, fresh=1).context
    return context, least_squares(context)["layer1"]


@settings(max_examples=10)
@given(pairs=st.integers(1, 8), outputs=st.integers(1, 3))
def test_least_squares_is_the_smallest_network_that_fits(pairs, outputs):
    context, found = _fitted(jax.random.key(pairs), pairs=pairs, outputs=outputs)
    for x, y, kernel in zip(*map(np.asarray, context), found, strict=True):
        expected = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=1e-6)[0]
        np.testing.assert_allclose(kernel, expected, atol=2e-3 * max(1, abs(expected).max()))


# --- equivalence --------------------------------------------------------------------------------


@functools.cache
def _networks(key, tasks=6, sizes=(3, 5, 2)):
    @jax.jit
    def drawn(key):
        return jax.vmap(target(sizes).init)(jax.random.split(key, tasks))

    return jax.device_get(drawn(jax.random.key(key)))


def test_rescaled_networks_compute_the_same_and_are_recognised():
    weights = _networks(0)
    other = equivalence.rescaled(weights, np.random.default_rng(0))
    assert not np.allclose(other["layer1"], weights["layer1"])
    x = np.random.default_rng(1).standard_normal((6, 9, 3), np.float32)
    same = {name: leaf.astype(np.float32) for name, leaf in other.items()}
    computed = jax.jit(functools.partial(compute, (3, 5, 2)))
    np.testing.assert_allclose(computed(weights, x), computed(same, x), atol=1e-5)
    matched = equivalence.match(weights, other)
    assert matched.share == pytest.approx(1, abs=1e-6)
    found = np.take_along_axis(other["layer1"], matched.order[:, None, :], axis=2)
    cosine = np.sum(found * weights["layer1"], axis=1)
    cosine /= np.linalg.norm(found, axis=1) * np.linalg.norm(weights["layer1"], axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


def test_silent_units_share_nothing_and_strangers_less_than_the_same():
    weights = _networks(0)
    silent = {name: np.zeros_like(leaf) for name, leaf in weights.items()}
    assert equivalence.match(weights, silent).share == pytest.approx(0)
    assert equivalence.match(weights, _networks(1)).share < 0.5
    with pytest.raises(ValueError, match=r"one hidden layer.*layer3"):
        equivalence.match({**weights, "layer3": weights["layer2"]}, weights)


def test_distance_of_units_is_that_of_what_they_add():
    one, two = (_networks(i, tasks=1, sizes=(3, 1, 1)) for i in (0, 1))
    x = np.random.default_rng(0).standard_normal((200_000, 3))
    first, second = (
        reference({name: leaf[0] for name, leaf in each.items()}, x) for each in (one, two)
    )
    expected = 1 - np.mean((first - second) ** 2) / np.mean(first**2)
    assert equivalence.match(one, two).share == pytest.approx(expected, abs=0.02)


def test_agreement_and_preference():
    weights, other = _networks(0, tasks=400), _networks(1, tasks=400)
    assert equivalence.agreement(weights, weights) == 1
    assert equivalence.agreement(weights, other) == pytest.approx(0, abs=0.1)
    assert equivalence.preference(weights) < 0.15
    one_way = {**weights, "layer1": abs(weights["layer1"][:1]) * (1 + 0 * other["layer1"])}
    assert equivalence.preference(one_way) == pytest.approx(1, abs=1e-6)


# --- analysis -----------------------------------------------------------------------------------


@pytest.fixture
def few_tasks(monkeypatch):
    monkeypatch.setattr(analysis, "_TASKS", 64)
    monkeypatch.setattr(analysis, "_BATCH", 32)
    monkeypatch.setattr(analysis, "_FRESH", 8)
    jax.clear_caches()


@pytest.mark.slow
def test_an_oracle_is_perfect_in_every_analysis(few_tasks, monkeypatch):
    """Least squares in place of a trained predictor: it is right wherever pairs suffice."""
    monkeypatch.setattr(analysis, "predict", lambda straw, params, context: least_squares(context))
    found = analysis.analyse((4, 1), 8, weight_predictor((4, 1)), {}, 0)
    for name in ("fresh inputs", "context inputs"):
        assert set(found[name]) == set(analysis.INPUTS)
        assert all(share > 0.999 for share in found[name].values())
    assert list(found["pairs"]) == ["2", "4", "5", "8", "12", "20"]
    assert found["pairs"] == found["least squares"]
    assert found["pairs"]["2"] == pytest.approx(0.5, abs=0.2)  # half of the numbers are known
    assert found["pairs"]["20"] > 0.999
    assert found["other task"] < 0
    assert found["fit"]["predicted"]["0"]["explained"] > 0.999
    assert found["fit"]["random"]["0"]["explained"] < 0
    assert found["fit"]["random"]["30"]["solved"] == 1
    assert "units" not in found


@pytest.mark.slow
def test_units_are_examined_with_one_hidden_layer(few_tasks):
    straw = weight_predictor(SIZES, embedding=8)
    params = jax.jit(straw.init)(jax.random.key(0))
    found = analysis.analyse(SIZES, 5, straw, params, 0)
    units = found["units"]
    assert "least squares" not in found
    assert units["same place"] > 0.9  # an untrained predictor says nearly the same of everything
    assert units["preference"] > units["preference of targets"]
    assert units["share"] < 1
    again = analysis.analyse(SIZES, 5, straw, params, 0)
    assert again == found


# --- precision ----------------------------------------------------------------------------------


def _objective(name, dtype):
    build = partial(MODELS[name].build, SIZES, dtype=dtype)
    if MODELS[name].predicts == "outputs":
        return outputs_objective(SIZES, build())
    return weights_objective(SIZES, 6, straw=build(embedding=8), fresh=4)


def _loss_and_gradient(name, dtype, params, drawn):
    def loss(params):
        predicted, y = _objective(name, dtype).outputs(params, drawn)
        assert (predicted.dtype, y.dtype) == (jnp.float32, jnp.float32)
        return score(predicted, y).loss

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("name", list(MODELS))
def test_precision_is_that_of_the_predictor_alone(name):
    """In float32 nothing has 16 bits; in bfloat16 parameters, loss and gradient are float32."""

    def program(dtype):
        objective = _objective(name, dtype)
        params = jax.eval_shape(objective.init, jax.random.key(0))
        drawn = jax.eval_shape(lambda: objective.draw(jax.random.key(0), 3))
        jaxpr, shapes = jax.make_jaxpr(partial(_loss_and_gradient, name, dtype), return_shape=True)(
            params, drawn
        )
        assert {x.dtype for x in jax.tree.leaves((params, shapes))} == {jnp.dtype("float32")}
        return str(jaxpr)

    assert "bf16" not in program(None)
    assert ":bf16[3,128] = dot_general" in program(jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_bfloat16_is_near_float32(name):
    objective = _objective(name, None)
    compute = jax.jit(_loss_and_gradient, static_argnums=(0, 1))
    params, drawn = jax.jit(
        lambda: (objective.init(jax.random.key(0)), objective.draw(jax.random.key(1), 64))
    )()
    loss, gradient = compute(name, jnp.bfloat16, params, drawn)
    exact, of_exact = compute(name, None, params, drawn)
    assert loss == pytest.approx(float(exact), rel=0.02)
    assert loss != exact
    flat, of_flat = (ravel_pytree(each)[0] for each in (gradient, of_exact))
    assert np.linalg.norm(flat - of_flat) < 0.05 * np.linalg.norm(of_flat)
