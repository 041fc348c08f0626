import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

from straw_experiments.table_classification import (
    analysis,
    config,
    evaluate,
    networks,
    objective,
    prior,
    report,
)
from straw_experiments.table_classification.evaluate import Split
from straw_experiments.table_classification.prior import CLASSES, FEATURES, Tables

SCRIPT = scripts.EXPERIMENTS / "tables.py"
RNG = np.random.default_rng(0)


def given(tables=2, rows=12, shown=9, features=5, classes=3, queries=4):
    """Random tables, with rows that are none and features that are absent."""
    x = RNG.normal(size=(tables, rows + queries, FEATURES)).astype(np.float32)
    x[..., features:] = 0
    y = RNG.integers(0, classes, (tables, rows + queries), dtype=np.int32)
    mask = np.broadcast_to(np.arange(rows) < shown, (tables, rows))
    return Tables(x[:, :rows], y[:, :rows], mask, x[:, rows:], y[:, rows:])


@pytest.fixture(scope="module")
def small():
    straw = networks.table_straw(12, width=44, units=8, blocks=1)
    # Random parameters: at the start, what is written is not yet the table's.
    params = jax.tree.map(
        lambda leaf: RNG.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32),
        jax.eval_shape(straw.init, jax.random.key(0)),
    )
    return jax.jit(lambda tables: objective.logits_of(straw, params, tables))


def test_features_are_standardised_by_the_rows_shown():
    tables = given()
    tables.x[:, :, 1] = 7.0  # constant
    x, asked = objective.standardised(tables.x, tables.mask, tables.asked)
    for i, shown in enumerate(tables.x[:, :9]):
        mean, deviation = shown.mean(0), shown.std(0)
        expected = np.clip((tables.asked[i] - mean) / np.where(deviation > 0, deviation, 1), -4, 4)
        expected[:, 1] = 0
        np.testing.assert_allclose(asked[i], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x[:, :9, 0].std(1), 1, rtol=1e-4)
    assert not np.any(x[:, 9:])
    assert not np.any(x[..., 5:])


def test_last_layer_solves_a_ridge_regression():
    tables = given()
    seen, _ = objective.context_of(tables)
    x, classes, kept = networks.unpack(seen)
    weights = {
        "kernel": RNG.normal(size=(2, FEATURES, 6)).astype(np.float32),
        "bias": RNG.normal(size=(2, 6)).astype(np.float32),
    }
    numbers = np.array([[3.0, 2.0, 1.5], [1.0, 5.0, 0.5]], np.float32)
    found = networks._fitted(weights, jnp.asarray(numbers), x, classes, kept)
    for i in range(2):
        of_one = {name: leaf[i] for name, leaf in weights.items()}
        read = np.asarray(networks.hidden_rows(of_one, x[i]), np.float64)[:9]
        scale = np.repeat(
            [numbers[i, 0] / 6**0.5, numbers[i, 1] / FEATURES**0.5, 1], [6, FEATURES, 1]
        )
        # Least squares with a penalty of the weights by what they are scaled.
        solved = np.linalg.solve(
            read.T @ read + np.diag(scale**-2), read.T @ np.asarray(classes[i, :9], np.float64)
        )
        np.testing.assert_allclose(found[i], numbers[i, 2] * solved, rtol=2e-3, atol=2e-4)


def test_order_of_rows_and_what_is_no_row_do_not_matter(small):
    tables = given()
    logits = small(tables)
    order = np.concatenate([RNG.permutation(9), np.arange(9, 12)])
    turned = tables._replace(x=tables.x[:, order], y=tables.y[:, order])
    turned.x[:, 9:] = 100.0
    turned.y[:, 9:] = 1
    np.testing.assert_allclose(small(turned), logits, rtol=2e-3, atol=2e-3)
    others = tables._replace(y=(tables.y + 1) % 3)
    assert np.max(np.abs(np.asarray(small(others)[..., :3] - logits[..., :3]))) > 0.1


def test_classes_that_are_not_shown_are_no_answer(small):
    tables = given(classes=3)
    logits = np.asarray(small(tables))
    assert np.all(np.isneginf(logits[..., 3:]))
    assert np.all(np.isfinite(logits[..., :3]))
    found = objective.score(jnp.asarray(logits[:1, :2]), jnp.array([[1, 7]]))
    logs = logits[0, 0] - np.log(np.sum(np.exp(logits[0, 0])))
    assert float(found.loss) == pytest.approx(-logs[1], rel=1e-4)
    assert float(found.accuracy) in (0.0, 0.5)


def test_drawn_tables_are_of_the_sizes_that_they_say():
    tables = prior.draw(jax.random.key(0), 8, rows=20, queries=6)
    assert tables.x.shape == (8, 20, FEATURES)
    assert tables.asked.shape == (8, 6, FEATURES)
    assert np.all(tables.mask.sum(1) >= 12)
    assert np.all(np.isfinite(tables.x))
    assert tables.y.min() >= 0
    assert tables.y.max() < CLASSES
    features = np.any(tables.x != 0, axis=1).sum(-1)
    assert features.min() >= 2
    assert len(set(features.tolist())) > 2
    again = prior.draw(jax.random.key(0), 8, rows=20, queries=6)
    jax.tree.map(np.testing.assert_array_equal, tables, again)
    assert np.any(prior.draw(jax.random.key(1), 8, rows=20, queries=6).y != tables.y)


def test_given_tables_are_padded():
    split = Split(np.ones((5, 3)), np.arange(5) % 2, np.ones((7, 3)), np.zeros(7, int))
    tables = evaluate.as_tables(split, 8)
    assert tables.x.shape == (1, 8, FEATURES)
    assert tables.asked.shape == (
        1,
        evaluate.QUERIES,
        FEATURES,
    )
    assert tables.mask.sum() == 5
    assert tables.x.sum() == 15


def test_first_order_is_as_it_is_and_all_are_orders():
    made = evaluate.orders(4)
    np.testing.assert_array_equal(made[0], np.arange(FEATURES))
    np.testing.assert_array_equal(np.sort(made, -1), np.tile(np.arange(FEATURES), (4, 1)))
    np.testing.assert_array_equal(evaluate.orders(2), made[:2])


def test_ranks_are_means_over_sets_and_the_level_share_theirs():
    accuracies = {
        "a": {"one": {"16": 0.9, "32": 0.9}, "two": {"16": 0.5, "32": 0.6}},
        "b": {"one": {"16": 0.9, "32": 0.8}, "two": {"16": 0.7, "32": 0.6}},
        "c": {"one": {"16": 0.1, "32": 1.0}, "two": {"16": 0.6, "32": 0.6}},
    }
    found = analysis.mean_ranks(accuracies)
    assert found["a"] == {"16": (1.5 + 3) / 2, "32": (2 + 2) / 2, "all": (2.25 + 2) / 2}
    assert found["b"]["16"] == (1.5 + 1) / 2
    assert found["c"]["32"] == (1 + 2) / 2


def test_without_scikit_learn_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        config.parse([])
    assert 'pip install "straw_jax[tables]"' in capsys.readouterr().err
    assert config.parse(["--sets", "none"]).tested_sets == []


def test_splits_are_of_the_whole_set_and_differ_by_seed():
    pytest.importorskip("sklearn")
    from straw_experiments.table_classification import real

    (first,) = real.splits("wine", 32, 0, 1)
    (other,) = real.splits("wine", 32, 1, 1)
    assert first.x.shape == (32, 13)
    assert first.asked.shape == (178 - 32, 13)
    assert set(first.y) == {0, 1, 2}
    assert np.any(first.x != other.x)
    (digits,) = real.splits("digits", 128, 0, 1)
    assert digits.asked.shape == (512, 64)
    assert real.reduced(digits).x.shape == (128, 32)
    assert real.reduced(first) is first
    found = real.rivals(first, only=("logistic", "majority"))
    assert found["logistic"].accuracy > 0.85 > found["majority"].accuracy
    with pytest.raises(ValueError, match="load: expected one of iris"):
        real.load("moons")


@pytest.mark.slow
def test_script_trains_tests_and_resumes(tmp_path):
    pytest.importorskip("sklearn")
    flags = (
        "--steps 3 --batch-size 2 --rows 16 --units 8 --width 44 --splits 1 --sets iris"
        " --models straw --jobs 1 --out here"
    )

    def ran(*more):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *flags.split(), *more],
            cwd=tmp_path, env=scripts.environment(), capture_output=True, text=True,
        )  # fmt: skip

    first = ran()
    assert first.returncode == 0, first.stderr
    out = tmp_path / "here"
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["ranks"]) == {"straw", *report.RIVALS}
    assert summary["results"]["straw"]["members"]["mean"] in evaluate.MEMBERS
    assert {"metrics.csv", "report.md", "curves.png", "rows.png"} <= {p.name for p in out.iterdir()}
    assert "logistic regression" in first.stdout
    result = next(out.glob("runs/*/result.json"))
    before = json.loads(result.read_text())
    result.unlink()  # so that the test is made again, from the stored parameters
    (out / "summary.json").unlink()
    assert ran().returncode == 2  # an earlier run is there
    assert ran("--resume").returncode == 0
    after = json.loads(result.read_text())
    assert after["accuracy"] == before["accuracy"]
    assert after["controls"] == before["controls"]
