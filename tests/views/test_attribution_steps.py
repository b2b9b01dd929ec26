"""A function done in steps: it runs only while somebody takes a step, and tidies up when nobody does any more."""

import threading
from collections.abc import Callable

import pytest

from workbench.views.attribution_steps import Abandoned, in_steps
from workbench.views.lane import Job, Lane


def counting(log: list[str], upto: int = 3) -> Callable[[Callable[[int], None]], str]:
    def work(report: Callable[[int], None]) -> str:
        try:
            for number in range(upto):
                log.append(f"before {number}")
                report(number)
            return "done"
        finally:
            log.append("tidied")

    return work


def test_reports_come_one_by_one_and_then_the_result() -> None:
    log: list[str] = []
    steps = in_steps(counting(log))
    assert log == []
    assert next(steps) == 0
    assert log == ["before 0"]  # it rests until the next step is taken
    assert [next(steps), next(steps)] == [1, 2]
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == "done"
    assert log[-1] == "tidied"


def test_a_function_that_reports_nothing_gives_its_result_at_once() -> None:
    with pytest.raises(StopIteration) as end:
        next(in_steps(lambda report: 7))
    assert end.value.value == 7


def test_an_error_reaches_whoever_takes_the_step() -> None:
    def work(report: Callable[[int], None]) -> None:
        report(1)
        raise ValueError("no such layer.")

    steps = in_steps(work)
    next(steps)
    with pytest.raises(ValueError, match="no such layer"):
        next(steps)


def test_closing_ends_the_function_where_it_rests_and_waits_until_it_has_tidied_up() -> None:
    log: list[str] = []
    steps = in_steps(counting(log))
    next(steps)
    steps.close()
    assert log == ["before 0", "tidied"]
    assert not [thread for thread in threading.enumerate() if thread.name == "workbench-steps"]


def test_what_ends_an_abandoned_function_passes_handlers_of_errors() -> None:
    seen: list[str] = []

    def work(report: Callable[[int], None]) -> None:
        try:
            report(0)
        except Exception:
            seen.append("caught")
        except Abandoned:
            seen.append("abandoned")
            raise

    steps = in_steps(work)
    next(steps)
    steps.close()
    assert seen == ["abandoned"]


def test_the_lane_serves_others_between_two_steps() -> None:
    lane, order, done = Lane(), [], threading.Event()
    waiting = threading.Event()

    def work(report: Callable[[int], None]) -> str:
        assert waiting.wait(30)
        report(1)
        order.append("long work goes on")
        return "long"

    def finish(result: str) -> None:
        order.append(result)
        done.set()

    lane.submit("long", Job(lambda job: in_steps(work), finish, lambda error: None))
    lane.submit("short", Job(lambda job: "short", order.append, lambda error: None))
    waiting.set()
    assert done.wait(30)
    assert order == ["short", "long work goes on", "long"]
