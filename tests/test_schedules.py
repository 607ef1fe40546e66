import math

import pytest

from vae_lightning.schedules import Constant, Cyclic, ExponentialDecay, LinearWarmup


def test_constant():
    assert [Constant()(step) for step in (0, 10**6)] == [1, 1]


def test_linear_warmup():
    warmup = LinearWarmup(steps=10)
    assert [warmup(step) for step in (0, 1, 5, 10, 1000)] == [0, 0.1, 0.5, 1, 1]


def test_cyclic():
    cyclic = Cyclic(period=100, rise=0.5)
    assert [cyclic(step) for step in (0, 25, 50, 99, 100, 125)] == [0, 0.5, 1, 1, 0, 0.5]


def test_the_rise_of_a_cycle_is_an_option():
    slow, fast = Cyclic(period=100, rise=1.0), Cyclic(period=100, rise=0.2)
    assert [slow(step) for step in (0, 25, 50, 99, 100, 125)] == [0, 0.25, 0.5, 0.99, 0, 0.25]
    assert [fast(step) for step in (0, 5, 20, 99, 100, 110)] == [0, 0.25, 1, 1, 0, 0.5]


def test_exponential_decay():
    decay = ExponentialDecay(rate=0.01, minimum=0.3)
    expected = [1, math.exp(-0.5), math.exp(-1), 0.3, 0.3]
    assert [decay(step) for step in (0, 50, 100, 121, 10**6)] == pytest.approx(expected)
    assert ExponentialDecay(rate=0)(1000) == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: LinearWarmup(0),
        lambda: Cyclic(0),
        lambda: Cyclic(10, rise=0),
        lambda: ExponentialDecay(rate=-1),
        lambda: ExponentialDecay(rate=math.nan),
        lambda: ExponentialDecay(minimum=1.5),
        lambda: ExponentialDecay(minimum=-0.1),
    ],
)
def test_bad_arguments(build):
    with pytest.raises(ValueError, match=r"must (not )?be"):
        build()
