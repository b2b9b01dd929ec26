"""The one lane that all torch work of a process goes through.

Requests wait in the order of their owners; a newer request of an owner takes the place of its older one that still
waits. A timing that runs in the lane therefore has the machine's kernels to itself. Long work comes in steps, and after
each step the others that wait have their turn.
"""

import atexit
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Job:
    """One request. `run` may poll `cancelled`; `done(result)` or `failed(error)` is called in the lane's thread.

    Where `run` returns a generator, each of its steps is a turn of its own in the lane: `partly(item)` is called with
    what it yields, and `done` with what it returns. One that is cancelled has its generator closed.
    """

    run: Callable[["Job"], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    partly: Callable[[Any], None] = lambda item: None
    cancelled: threading.Event = field(default_factory=threading.Event)
    steps: Generator[Any, None, Any] | None = None

    def perform(self) -> None:
        """Run, or run the next step; `steps` is None when nothing is left to do."""
        try:
            result, deliver = self._advance()
        except Exception as error:
            result, deliver, self.steps = error, self.failed, None
        if not self.cancelled.is_set():
            deliver(result)

    def _advance(self) -> tuple[Any, Callable[[Any], None]]:
        """What the next step gave, and who is told."""
        if self.steps is None:
            result = self.run(self)
            if not isinstance(result, Generator):
                return result, self.done
            self.steps = result
        try:
            return next(self.steps), self.partly
        except StopIteration as end:
            self.steps = None
            return end.value, self.done

    def drop(self) -> None:
        """Give the job up, between two steps."""
        self.cancelled.set()
        steps, self.steps = self.steps, None
        if steps is None:
            return
        try:
            steps.close()
        except Exception:  # nobody waits for it any more, and neither the lane nor who asks anew may fail by it
            logging.getLogger(__name__).exception("Work in steps could not be closed.")


#: Seconds that a process waits at its end for the job that runs. A thread that ended inside C++ would abort it.
FAREWELL = 10.0


class Lane:
    """A queue with one worker thread, started with the first job."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, Job] = OrderedDict()
        self._running: tuple[Hashable, Job] | None = None
        self._changed = threading.Condition(threading.RLock())
        self._worker: threading.Thread | None = None
        self._closed = False

    def submit(self, owner: Hashable, job: Job) -> None:
        """Queue a job in the place of the owner's that still waits; one that runs is asked to stop."""
        with self._changed:
            if self._closed:
                job.drop()
                return
            if owner in self._waiting:
                self._waiting[owner].drop()
            self._stop_running(owner)
            self._waiting[owner] = job
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="workbench-lane", daemon=True)
                self._worker.start()
                atexit.register(self.close)
            self._changed.notify()

    def cancel(self, owner: Hashable) -> None:
        """Drop the owner's waiting job and ask its running one to stop."""
        with self._changed:
            dropped = self._waiting.pop(owner, None)
            if dropped is not None:
                dropped.drop()
            self._stop_running(owner)

    def close(self, patience: float = FAREWELL) -> None:
        """Drop what waits, ask what runs to stop, and wait for it; the lane takes no more jobs."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.popitem()[1].drop()
            if self._running is not None:
                self._running[1].cancelled.set()
            self._changed.notify()
        if self._worker is not None:
            self._worker.join(patience)

    def _stop_running(self, owner: Hashable) -> None:
        if self._running is not None and self._running[0] == owner:
            self._running[1].cancelled.set()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._running = None
                    if self._closed:
                        return
                    self._changed.wait()
                owner, job = self._waiting.popitem(last=False)
                self._running = owner, job
            try:
                job.perform()
            except Exception:  # the receiver's fault, such as a page that is gone: the lane serves the others
                logging.getLogger(__name__).exception("A result of the lane could not be delivered.")
                job.drop()
            if job.steps is not None:
                self._queue_again(owner, job)

    def _queue_again(self, owner: Hashable, job: Job) -> None:
        """Put a job with steps left behind those that wait, unless it was cancelled or its owner has a newer one."""
        with self._changed:
            if owner in self._waiting or job.cancelled.is_set():  # which `close` sets, too
                job.drop()
            else:
                self._waiting[owner] = job


#: The lane of this process.
LANE = Lane()
