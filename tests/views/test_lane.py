"""The lane: one job at a time, the newest request of each owner, and nothing from what was cancelled or failed."""

import threading

import pytest

from workbench.views.lane import Job, Lane

PATIENCE = 20  # seconds until a test that waits for what never happens fails


class Journal:
    """What happened, in order; jobs that hold the lane until they are let go."""

    def __init__(self, lane):
        self.lane, self.events, self._changed = lane, [], threading.Condition()

    def note(self, *event):
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, *event):
        with self._changed:
            assert self._changed.wait_for(lambda: event in self.events, PATIENCE), f"{event} not in {self.events}"

    def submit(self, owner, name, run=None):
        """Queue a job that notes when it runs and what it delivers."""

        def work(job):
            self.note("run", name)
            return name if run is None else run(job)

        job = Job(work, lambda result: self.note("done", result), lambda error: self.note("failed", str(error)))
        self.lane.submit(owner, job)
        return job

    def hold(self, owner="holder", name="hold"):
        """Submit a job that keeps the lane until the returned event is set, and wait until it runs."""
        release = threading.Event()

        def run(job):
            assert release.wait(PATIENCE)
            return name

        job = self.submit(owner, name, run)
        self.wait_for("run", name)
        return release, job

    def settle(self):
        """Wait until everything submitted so far is through."""
        self.submit("settle", "settled")
        self.wait_for("done", "settled")
        return [event for event in self.events if "settled" not in event]


def test_closing_waits_for_what_runs_drops_what_waits_and_takes_nothing_more(journal):
    def until_asked(job):
        assert job.cancelled.wait(PATIENCE)
        journal.note("stopped")

    journal.submit("a", "long", until_asked)
    journal.wait_for("run", "long")
    waiting = journal.submit("b", "never")
    journal.lane.close(PATIENCE)
    after = journal.submit("c", "too late")
    assert waiting.cancelled.is_set()
    assert after.cancelled.is_set()
    assert journal.events == [("run", "long"), ("stopped",)]
    assert not journal.lane._worker.is_alive()


@pytest.fixture
def journal():
    return Journal(Lane())


def test_a_job_delivers_its_result(journal):
    journal.submit("a", "first")
    assert journal.settle() == [("run", "first"), ("done", "first")]


def test_jobs_of_different_owners_run_in_the_order_of_their_requests_and_never_two_at_once(journal):
    release, _ = journal.hold()
    for owner in "abcd":
        journal.submit(owner, owner)
    release.set()
    expected = [("run", "hold"), ("done", "hold")]
    expected += [event for owner in "abcd" for event in (("run", owner), ("done", owner))]
    assert journal.settle() == expected


def test_all_jobs_run_in_one_thread_which_is_not_the_callers(journal):
    threads = []
    for owner in "abc":
        journal.submit(owner, owner, lambda job: threads.append(threading.current_thread()))
        journal.settle()
        journal.events.clear()
    assert len(threads) == 3
    assert set(threads) != {threading.current_thread()}
    assert len(set(threads)) == 1


def test_an_owners_newest_request_replaces_the_one_that_waits(journal):
    release, _ = journal.hold()
    old, middle = journal.submit("a", "old"), journal.submit("a", "middle")
    journal.submit("b", "other")
    new = journal.submit("a", "new")
    release.set()
    events = journal.settle()
    assert ("done", "new") in events
    assert ("done", "other") in events
    assert not {"old", "middle"} & {name for _, name in events}
    assert old.cancelled.is_set()
    assert middle.cancelled.is_set()
    assert not new.cancelled.is_set()


def test_a_newer_request_asks_the_owners_running_job_to_stop_and_its_result_is_dropped(journal):
    def until_cancelled(job):
        assert job.cancelled.wait(PATIENCE)
        return "partial"

    journal.submit("a", "long", until_cancelled)
    journal.wait_for("run", "long")
    journal.submit("a", "new")
    assert journal.settle() == [("run", "long"), ("run", "new"), ("done", "new")]


def test_a_running_job_of_another_owner_is_left_alone(journal):
    release, job = journal.hold()
    journal.submit("a", "new")
    journal.lane.cancel("a")
    journal.lane.cancel("nobody")
    assert not job.cancelled.is_set()
    release.set()
    assert journal.settle() == [("run", "hold"), ("done", "hold")]


def test_a_cancelled_running_job_delivers_nothing(journal):
    release, job = journal.hold("a")
    journal.lane.cancel("a")
    assert job.cancelled.is_set()
    release.set()
    assert journal.settle() == [("run", "hold")]


def test_a_cancelled_job_that_raises_reports_nothing(journal):
    def fail_when_cancelled(job):
        assert job.cancelled.wait(PATIENCE)
        raise RuntimeError("stopped")

    journal.submit("a", "long", fail_when_cancelled)
    journal.wait_for("run", "long")
    journal.lane.cancel("a")
    assert journal.settle() == [("run", "long")]


def test_an_exception_goes_to_failed_and_the_lane_goes_on(journal):
    def fail(job):
        raise ValueError("no such layer")

    journal.submit("a", "bad", fail)
    journal.submit("b", "good")
    assert journal.settle() == [("run", "bad"), ("failed", "no such layer"), ("run", "good"), ("done", "good")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_the_lane_goes_on_when_the_receiver_of_a_result_raises(journal, outcome):
    def receive(_):
        journal.note("received")
        raise RuntimeError("the page is gone")

    def run(job):
        if outcome == "failed":
            raise ValueError("no such layer")

    journal.lane.submit("a", Job(run, receive, receive))
    journal.wait_for("received")
    journal.submit("b", "next")
    journal.wait_for("done", "next")


def lanes():
    return {thread for thread in threading.enumerate() if thread.name == "workbench-lane"}


def test_a_lane_starts_no_thread_before_its_first_job():
    before = lanes()
    journal = Journal(Lane())
    assert lanes() == before
    journal.submit("a", "first")
    journal.settle()
    assert len(lanes() - before) == 1


def in_steps(journal, name, steps=3, hold=None):
    """Work in steps that notes each of them, and that it was closed."""

    def run(job):
        try:
            for step in range(steps):
                journal.note("step", name, step)
                if hold is not None:
                    assert hold.wait(PATIENCE)
                yield step
        finally:
            journal.note("closed", name)
        return name

    return run


def submit_steps(journal, owner, name, **settings):
    job = journal.submit(owner, name, in_steps(journal, name, **settings))
    job.partly = lambda item: journal.note("partly", name, item)
    return job


def test_work_in_steps_shows_what_each_of_them_gave_and_then_its_result(journal):
    release, _ = journal.hold()
    submit_steps(journal, "a", "long", steps=2)
    release.set()
    journal.wait_for("done", "long")
    parts = [event for event in journal.events if event[0] in ("partly", "done") and event[1] != "hold"]
    assert parts == [("partly", "long", 0), ("partly", "long", 1), ("done", "long")]


def test_between_two_steps_the_others_have_their_turn(journal):
    release, _ = journal.hold()
    submit_steps(journal, "a", "long")
    journal.submit("b", "short")
    release.set()
    journal.wait_for("done", "long")
    at = {event: place for place, event in enumerate(journal.events)}
    assert at["step", "long", 0] < at["done", "short"] < at["step", "long", 1]


def test_cancelled_work_in_steps_is_closed_and_delivers_nothing_more(journal):
    hold = threading.Event()
    submit_steps(journal, "a", "long", hold=hold)
    journal.wait_for("step", "long", 0)
    journal.lane.cancel("a")
    hold.set()
    journal.wait_for("closed", "long")
    journal.settle()
    assert not [event for event in journal.events if event[0] in ("partly", "done") and event[1] == "long"]
    assert ("step", "long", 1) not in journal.events


def test_a_newer_request_takes_the_place_of_work_in_steps(journal):
    hold = threading.Event()
    submit_steps(journal, "a", "old", hold=hold)
    journal.wait_for("step", "old", 0)
    submit_steps(journal, "a", "new")
    hold.set()
    journal.wait_for("done", "new")
    assert ("closed", "old") in journal.events
    assert ("step", "old", 1) not in journal.events


def test_work_in_steps_that_fails_says_so_once(journal):
    def run(job):
        yield 1
        raise ValueError("broken")

    journal.submit("a", "a", run)
    journal.wait_for("failed", "broken")
    assert journal.settle().count(("failed", "broken")) == 1


def test_work_that_cannot_be_closed_holds_up_neither_a_newer_request_nor_the_lane(journal):
    def run(job):
        try:
            journal.note("step")
            yield 1
            journal.note("step again")
        finally:
            raise RuntimeError("cannot tidy up")

    stuck = journal.submit("a", "stuck", run)
    release = threading.Event()
    stuck.partly = lambda item: release.wait(PATIENCE)
    journal.wait_for("step")
    journal.submit("a", "new")
    release.set()
    journal.wait_for("done", "new")
    journal.submit("b", "next")
    journal.wait_for("done", "next")
    assert ("step again",) not in journal.events
