"""The library computes what PyTorch does: stored losses, outputs and gradients of it."""

import jax
import numpy as np
import parity
import pytest

CASES = parity.cases()


@pytest.fixture(scope="module")
def stored():
    with np.load(parity.STORED) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_inputs_are_those_that_pytorch_had(name, stored):
    assert parity.checksum(parity.draw(CASES[name])) == stored[f"{name}/checksum"], (
        "parity.py draws something else than when tests/experiments/make_parity.py ran; run it"
        " again, with PyTorch"
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-5), pytest.param("float64", 1e-12, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", CASES)
def test_loss_outputs_and_gradients_are_pytorchs(name, dtype, tolerance, stored):
    case = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        params, inputs = jax.tree.map(
            lambda leaf: leaf.astype(dtype if leaf.dtype == np.float64 else np.int32),
            parity.draw(case),
        )
        both = jax.jit(jax.value_and_grad(case.loss, has_aux=True))
        (loss, outputs), gradient = both(params, inputs)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves((outputs, gradient))} == {dtype}
        np.testing.assert_allclose(loss, stored[f"{name}/loss"], rtol=tolerance)
        theirs = stored[f"{name}/outputs"]
        assert np.abs(outputs - theirs).max() < tolerance * np.abs(theirs).max()
        marks = parity.fingerprint(gradient)
    known = {key for key in stored if key.startswith(f"{name}/gradient/")}
    assert {f"{name}/gradient/{leaf}" for leaf in marks} == known
    for leaf, found in marks.items():
        theirs = stored[f"{name}/gradient/{leaf}"]
        norm = theirs[0]
        assert norm > 1e-6, leaf
        assert np.abs(found - theirs).max() < 10 * tolerance * norm, leaf


@pytest.mark.slow
def test_pytorch_computes_what_is_stored(stored):
    pytest.importorskip("torch")
    import make_parity

    for name, case in CASES.items():
        for key, found in make_parity.compute(name, case).items():
            if found.dtype.kind == "f":
                np.testing.assert_allclose(found, stored[key], rtol=1e-9, atol=1e-13)
