"""A step of a demo is announced before it begins, and its outcome is a sentence."""

import io

import pytest
from rich.console import Console

from flows.demo.steps import Steps


def test_a_step_is_announced_before_it_begins_and_ends_with_its_outcome() -> None:
    file = io.StringIO()
    steps = Steps(Console(file=file, width=80))
    with steps.step("Pretrain", "training the encoder") as step:
        announced = file.getvalue()
        step.outcome = "The encoder [of run x] is trained."
    assert announced == "    0 s  Pretrain: training the encoder\n"
    assert file.getvalue() == announced + "    0 s    The encoder [of run x] is trained. (0 s)\n"


def test_a_step_that_fails_has_no_outcome() -> None:
    file = io.StringIO()
    steps = Steps(Console(file=file, width=80))
    with pytest.raises(ZeroDivisionError), steps.step("Audit", "comparing"):
        raise ZeroDivisionError
    assert file.getvalue() == "    0 s  Audit: comparing\n"
