"""Budgets, places and rates, without a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.serving.counting import Budget, Places, RateLimit
from saysee.serving.refusal import Refusal


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lets_through(limit: RateLimit, address: str = "10.0.0.1", cost: int = 1) -> bool:
    try:
        limit.spend(address, cost)
    except Refusal as refusal:
        assert refusal.status == 429
        return False
    return True


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4)), max_size=60))
def test_no_more_is_let_through_than_the_rate_allows(arrivals: list[tuple[float, int]]) -> None:
    """In any stretch of time: the burst and what comes back meanwhile. And what is refused would have been too much."""
    clock, rate, burst = Clock(), 2.0, 6
    limit = RateLimit(rate, burst, 10, clock)
    passed: list[tuple[float, int]] = []
    for pause, cost in arrivals:
        clock.now += pause
        windows = [
            sum(other for at, other in passed[first:]) + cost - rate * (clock.now - passed[first][0])
            for first in range(len(passed))
        ]
        too_much = max([cost, *windows])
        if lets_through(limit, cost=cost):
            passed.append((clock.now, cost))
            assert too_much <= burst + 1e-6
        else:
            assert too_much > burst - 1e-6


def test_the_refusal_says_when_there_is_room_again() -> None:
    clock = Clock()
    limit = RateLimit(0.5, 3, 10, clock)
    assert [lets_through(limit) for _ in range(4)] == [True, True, True, False]
    with pytest.raises(Refusal) as refused:
        limit.spend("10.0.0.1", 2)
    assert refused.value.headers == {"retry-after": "4"}
    clock.now += 3.9
    assert not lets_through(limit, cost=2)
    clock.now += 0.2
    assert lets_through(limit, cost=2)


def test_what_costs_more_than_a_burst_is_let_through_alone() -> None:
    limit = RateLimit(1.0, 5, 10, Clock())
    assert lets_through(limit, cost=50)
    assert not lets_through(limit)


def test_clients_are_counted_by_themselves_and_an_ipv6_client_by_its_network() -> None:
    limit = RateLimit(1.0, 1, 10, Clock())
    assert lets_through(limit, "10.0.0.1")
    assert lets_through(limit, "10.0.0.2")
    assert lets_through(limit, "2001:db8::1")
    assert not lets_through(limit, "2001:db8::ffff:2")
    assert lets_through(limit, "2001:db8:0:1::1")
    assert lets_through(limit, "::ffff:10.0.0.3")
    assert lets_through(limit, "::ffff:10.0.0.4")
    assert lets_through(limit, "")


def test_the_table_of_clients_is_bounded() -> None:
    limit = RateLimit(1.0, 1, 100, Clock())
    for number in range(1000):
        limit.spend(f"10.0.{number // 250}.{number % 250}", 1)
    assert len(limit) == 100
    assert not lets_through(limit, "10.0.3.249")  # the last is remembered
    assert lets_through(limit, "10.0.0.0")


def test_a_budget_is_free_again_when_its_holder_ends() -> None:
    budget = Budget(10)
    with budget.hold() as one, pytest.raises(Refusal) as refused:
        one.add(4)
        with budget.hold() as other:
            other.add(6)
            one.add(1)
    assert refused.value.status == 503
    assert budget.taken == 0


def test_places_are_counted() -> None:
    places = Places(2)
    with places.place(), places.place(), pytest.raises(Refusal) as refused, places.place():
        pass
    assert refused.value.status == 503
    assert refused.value.headers == {"retry-after": "1"}
    assert places.taken == 0
