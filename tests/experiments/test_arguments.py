"""Bad arguments of the library are refused in one sentence, before anything is compiled."""

import numpy as np
import pytest

from straw_experiments.faults.arguments import answer, cases

CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_a_bad_argument_is_refused_in_one_sentence(name):
    assert answer(CASES[name]) == ""


def test_other_answers_are_told():
    assert answer(lambda: None) == "accepted"
    assert answer(lambda: {}["encoder"]).startswith("KeyError: 'encoder'")
    assert answer(lambda: np.zeros(2).reshape(3)).startswith("ValueError: cannot reshape")
