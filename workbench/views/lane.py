"""The one lane that all torch work of a process goes through.

Requests wait in the order of their owners; a newer request of an owner takes the place of its older one that still
waits. A timing that runs in the lane therefore has the machine's kernels to itself.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Job:
    """One request. `run` may poll `cancelled`; `done(result)` or `failed(error)` is called in the lane's thread."""

    run: Callable[["Job"], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Lane:
    """A queue with one worker thread, started with the first job."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, Job] = OrderedDict()
        self._running: tuple[Hashable, Job] | None = None
        self._changed = threading.Condition(threading.RLock())
        self._worker: threading.Thread | None = None

    def submit(self, owner: Hashable, job: Job) -> None:
        """Queue a job in the place of the owner's that still waits; one that runs is asked to stop."""
        with self._changed:
            if owner in self._waiting:
                self._waiting[owner].cancelled.set()
            self._stop_running(owner)
            self._waiting[owner] = job
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="workbench-lane", daemon=True)
                self._worker.start()
            self._changed.notify()

    def cancel(self, owner: Hashable) -> None:
        """Drop the owner's waiting job and ask its running one to stop."""
        with self._changed:
            dropped = self._waiting.pop(owner, None)
            if dropped is not None:
                dropped.cancelled.set()
            self._stop_running(owner)

    def _stop_running(self, owner: Hashable) -> None:
        if self._running is not None and self._running[0] == owner:
            self._running[1].cancelled.set()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._running = None
                    self._changed.wait()
                owner, job = self._waiting.popitem(last=False)
                self._running = owner, job
            try:
                self._perform(job)
            except Exception:  # the receiver's fault, such as a page that is gone: the lane serves the others
                logging.getLogger(__name__).exception("A result of the lane could not be delivered.")

    @staticmethod
    def _perform(job: Job) -> None:
        try:
            result = job.run(job)
        except Exception as error:
            if not job.cancelled.is_set():
                job.failed(error)
        else:
            if not job.cancelled.is_set():
                job.done(result)


#: The lane of this process.
LANE = Lane()
