"""How long a line and a name are not heard after wrong passwords."""

from __future__ import annotations

from appliance.identity.throttle import (
    FORGET_S,
    FREE,
    LINE_LIMIT_S,
    NAME_LIMIT_S,
    REMEMBERED,
    Throttle,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(
    throttle: Throttle, clock: Clock, count: int, *, line: str = "a", name: str = "anna"
) -> list[float]:
    """The wait after each of so many wrong passwords, each as soon as it is heard."""
    found = []
    for _ in range(count):
        throttle.wrong(line, name)
        found.append(throttle.wait_s(line, name))
        clock.now += found[-1]
        assert throttle.wait_s(line, name) == 0
    return found


def test_it_grows_to_a_bound_and_never_locks_out() -> None:
    clock = Clock()
    assert waits(Throttle(clock), clock, 9) == [0, 0, 1, 2, 4, 8, 16, LINE_LIMIT_S, LINE_LIMIT_S]
    assert FREE == 2
    assert max(waits(Throttle(clock), clock, 5000)) == LINE_LIMIT_S


def test_a_line_waits_whatever_the_name() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for number in range(4):
        throttle.wrong("a", f"name-{number}")
    assert throttle.wait_s("a", "another") == throttle.line_wait_s("a") == 2
    assert throttle.wait_s("b", "another") == throttle.line_wait_s("b") == 0


def test_a_name_waits_whatever_the_line_but_less_long() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for number in range(50):
        throttle.wrong(f"line-{number}", "anna")
    assert throttle.wait_s("another", "anna") == NAME_LIMIT_S
    assert throttle.wait_s("another", "bert") == 0
    # Somebody goes on guessing on one line, as fast as it goes: the owner on another is heard in between.
    for _ in range(10):
        throttle.wrong("line-0", "anna")
    clock.now += NAME_LIMIT_S
    assert throttle.wait_s("owners", "anna") == 0
    assert throttle.wait_s("line-0", "anna") == LINE_LIMIT_S - NAME_LIMIT_S


def test_the_right_password_begins_anew_for_its_name_and_line_alone() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(6):
        throttle.wrong("a", "anna")
    throttle.right("a", "guest")  # somebody with an account guesses another's
    assert throttle.line_wait_s("a") == 0
    assert throttle.wait_s("a", "anna") == 8
    throttle.right("a", "anna")
    assert throttle.wait_s("a", "anna") == 0


def test_quiet_for_a_while_is_forgotten() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(9):
        throttle.wrong("a", "anna")
    clock.now += FORGET_S
    throttle.wrong("a", "anna")
    assert throttle.wait_s("a", "anna") == 0


def test_memory_is_bounded() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for number in range(REMEMBERED * 3):
        throttle.wrong(f"line-{number}", f"name-{number}")
    assert len(throttle._lines._wrong) == len(throttle._names._wrong) == REMEMBERED
