"""Code that is compiled once per process while the pages already answer."""

import logging
import threading
from collections.abc import Callable


class Background:
    """Work that is done once per process in a thread of its own; whoever needs it done asks to be told.

    Subclasses implement `work`. If it raises, that is logged, and those who wait are not called.
    """

    name = "workbench-background"

    def __init__(self) -> None:
        self.ready = threading.Event()
        self._changing = threading.Lock()
        self._begun = False
        self._waiting: list[Callable[[], None]] = []

    def work(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Begin, unless it has begun."""
        with self._changing:
            if self._begun:
                return
            self._begun = True
        threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def when_ready(self, call: Callable[[], None]) -> None:
        """Start the work, and call once it is done, from another thread; at once if it is."""
        with self._changing:
            done = self.ready.is_set()
            if not done:
                self._waiting.append(call)
        if done:
            call()
        else:
            self.start()

    def _run(self) -> None:
        try:
            self.work()
        except Exception:  # the pages go on without: they say what they wait for
            logging.getLogger(__name__).exception("%s failed.", self.name)
            return
        with self._changing:
            self.ready.set()
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            try:
                call()
            except Exception:  # such as of a page that is gone: the others are told
                logging.getLogger(__name__).exception("Who waited for %s could not be told.", self.name)
