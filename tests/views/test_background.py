"""Work that is done once in the background: who waits for it is told, and a failure leaves nobody hanging."""

import logging
import threading

from workbench.views.background import Background

PATIENCE = 20


class Work(Background):
    def __init__(self, fails=False):
        super().__init__()
        self.allowed, self.fails, self.times = threading.Event(), fails, 0

    def work(self):
        assert self.allowed.wait(PATIENCE)
        self.times += 1
        if self.fails:
            raise OSError("no compiler")


def test_whoever_asks_before_is_told_after_and_whoever_asks_after_at_once():
    work, early, late = Work(), threading.Event(), []
    work.when_ready(early.set)
    assert not early.is_set()
    work.allowed.set()
    assert early.wait(PATIENCE)
    work.when_ready(lambda: late.append(1))
    assert late == [1]
    assert work.times == 1


def test_work_that_fails_is_logged_and_calls_nobody(caplog):
    work, told = Work(fails=True), []
    with caplog.at_level(logging.ERROR):
        work.when_ready(lambda: told.append(1))
        work.allowed.set()
        for thread in threading.enumerate():
            if thread.name == work.name:
                thread.join(PATIENCE)
    assert told == []
    assert not work.ready.is_set()
    assert "no compiler" in caplog.text


def test_one_who_cannot_be_told_does_not_keep_it_from_the_others(caplog):
    work, told = Work(), threading.Event()

    def gone():
        raise RuntimeError("the page is gone")

    with caplog.at_level(logging.ERROR):
        work.when_ready(gone)
        work.when_ready(told.set)
        work.allowed.set()
        assert told.wait(PATIENCE)
    assert "the page is gone" in caplog.text
