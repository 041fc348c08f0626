import jax
import numpy as np
import pytest
from training_models import CLASSES, MODEL, images_and_labels, start

from straw_experiments.data import normalise
from straw_experiments.image_classification import evaluate as evaluation
from straw_experiments.image_classification.evaluate import (
    evaluate,
    in_batches,
    make_forward,
    predict,
)

FORWARD = make_forward(MODEL)
IMAGES, LABELS = images_and_labels(300)
VARIABLES = start().variables


@pytest.fixture(params=[False, True], ids=["host", "device"], autouse=True)
def picks_batches(request, monkeypatch):
    """Who picks the batches."""
    monkeypatch.setattr(evaluation, "on_device", lambda: request.param)
    monkeypatch.setattr(evaluation, "_MOST", 2)


@pytest.mark.parametrize("n", [1, 127, 128, 129, 300])
def test_any_number_of_images_is_counted_right(n):
    logits = np.asarray(MODEL.apply(VARIABLES, normalise(IMAGES[:n]), None)[0], np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(n), LABELS[:n]]
    score = evaluate(FORWARD, VARIABLES, IMAGES[:n], LABELS[:n])
    assert score.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert score.accuracy == (logits.argmax(-1) == LABELS[:n]).mean()
    np.testing.assert_array_equal(predict(FORWARD, VARIABLES, IMAGES[:n]), logits.argmax(-1))


def test_batch_size_does_not_change_the_outputs():
    whole = np.asarray(FORWARD(VARIABLES, IMAGES))
    assert whole.shape == (300, CLASSES)
    np.testing.assert_allclose(
        in_batches(FORWARD, VARIABLES, IMAGES, batch_size=7), whole, rtol=1e-5, atol=1e-6
    )


def test_one_compilation_serves_all_sizes():
    traces = []

    @jax.jit
    def forward(variables, images):
        traces.append(images.shape)
        return images.mean((1, 2, 3), dtype=np.float32)

    for n in (1, 128, 300):
        assert in_batches(forward, {}, IMAGES[:n]).shape == (n,)
    assert traces == [(128, 28, 28, 1)]


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="at least one sample"):
        evaluate(FORWARD, VARIABLES, IMAGES[:0], LABELS[:0])
