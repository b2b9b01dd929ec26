"""A function that reports its progress, done step by step, so that the lane serves others between two reports."""

import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Abandoned(BaseException):
    """Unwinds a function whose steps nobody takes any more; no `except Exception` on the way stops it."""


class Stepped:
    """A thread that runs `work(report)`, and rests inside every call of `report` until it is told to go on."""

    def __init__(self, work: Callable[[Callable[[Any], None]], Any]) -> None:
        self._work = work
        self._go, self._rested = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self.reported: list[Any] = []  # what came with the last report; empty once the function is done
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="workbench-steps", daemon=True)
        self._thread.start()

    def advance(self) -> bool:
        """Let the function run to its next report; False when it has ended."""
        self._go.release()
        self._rested.acquire()
        if not self.reported:
            self._thread.join()
        return bool(self.reported)

    def abandon(self) -> None:
        """End the function where it rests, and wait until it has tidied up."""
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                self.result = self._work(self._report)
        except Abandoned:
            pass
        except BaseException as error:
            self.error = error
        self.reported = []
        self._rested.release()

    def _report(self, item: Any) -> None:
        self.reported = [item]
        self._rested.release()
        self._go.acquire()
        if self._abandoned:
            raise Abandoned


def in_steps(work: Callable[[Callable[[Item], None]], Result]) -> Generator[Item, None, Result]:
    """What `work(report)` reports, item by item, and then what it returns or raises.

    The function runs in a thread of its own, but only while the caller of the generator waits for it: nothing ever runs
    beside it. Closing the generator raises `Abandoned` inside `report`.
    """
    steps = Stepped(work)
    try:
        while steps.advance():
            yield steps.reported[0]
    except GeneratorExit:
        steps.abandon()
        raise
    if steps.error is not None:
        raise steps.error
    return steps.result
