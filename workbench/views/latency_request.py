"""What the Latency page asks the lane for, and what comes back: a sweep that is timed point by point."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from functools import partial

import torch
import xarray as xr

from workbench.analysis.latency_ops import OPERATORS
from workbench.analysis.latency_sweep import PENDING, LatencySweepSpec, latency_sweep, stream_sweep

from .lane import Job

#: The largest side and the most sizes that the page takes; a time or memory that is too large is left out besides.
LARGEST_SIDE, MOST_SIZES = 4096, 16

#: Seconds that a sweep waits at the most for the page to draw a point, so that drawing and timing are not at once; and
#: before the first one, for which the page builds its figure anew in a thread that shares Python with the timing.
DRAWING, BUILDING = 1.0, 10.0

#: And seconds that it leaves the browser after that, which often runs on the same cores and goes on painting.
CALM = 0.25

#: The first look that the page takes by itself: a few seconds.
QUICK = LatencySweepSpec(
    ("gspn global", "full attention", "window attention", "depthwise 7x7"), (32, 64, 96), budget=0.1
)

#: From maps on whose calls take next to no time of their own, to those whose data leaves the caches.
DEFAULT_SIZES = "64, 96, 128, 192"


@dataclass(frozen=True)
class LatencyDrawing:
    """A sweep as far as it is: what it was asked for, its result, None before the first, and whether more will come."""

    request: LatencySweepSpec
    sweep: xr.Dataset | None
    running: bool

    @property
    def quick(self) -> bool:
        return self.request == QUICK

    @property
    def measured(self) -> int:
        """Points that have a time or a reason why there is none."""
        return 0 if self.sweep is None else int((self.sweep["reason"] != PENDING).sum())

    @property
    def planned(self) -> int:
        return len(self.request.names) * len(self.request.sizes)

    @property
    def complete(self) -> bool:
        return self.sweep is not None and bool(self.sweep.attrs["complete"])

    def next_point(self) -> tuple[str, int] | None:
        """The (name, size) that is timed after those that are done; None where nothing is left."""
        for size in self.request.sizes:
            for name in self.request.names:
                if self.sweep is None or self.sweep["reason"].sel(what=name, size=size) == PENDING:
                    return name, size
        return None


def parse_sizes(text: str) -> tuple[int, ...]:
    """The sides of a text such as "16, 32, 64", in order.

    Raises:
        ValueError: it is no list of whole numbers, or holds too many or too large ones.
    """
    words = [word for word in text.replace(",", " ").split() if word]
    if not words or not all(word.isascii() and word.isdecimal() and len(word) <= 6 for word in words):
        raise ValueError(f"Sizes are whole numbers with commas between them, such as 16, 32, 64; got {text!r}.")
    sizes = tuple(sorted({int(word) for word in words}))
    if sizes[0] < 1 or sizes[-1] > LARGEST_SIDE:
        raise ValueError(f"Sizes are sides from 1 to {LARGEST_SIDE}; got {text!r}.")
    if len(sizes) > MOST_SIZES:
        raise ValueError(f"The page takes at most {MOST_SIZES} sizes at once; got {len(sizes)}.")
    return sizes


def ordered(names: list[str]) -> tuple[str, ...]:
    """Names in the order of the list of operators, models after them."""
    return (*(name for name in OPERATORS if name in names), *(name for name in names if name not in OPERATORS))


class Measured:
    """The newest sweep of every request of this process: a page that is opened shows what is known already."""

    def __init__(self, most: int = 16) -> None:
        self._most, self._kept = most, OrderedDict[LatencySweepSpec, xr.Dataset]()
        self._lock = threading.Lock()

    def put(self, request: LatencySweepSpec, sweep: xr.Dataset) -> None:
        with self._lock:
            self._kept[request] = sweep
            self._kept.move_to_end(request)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def find(self, request: LatencySweepSpec) -> LatencyDrawing | None:
        """What is known of a request, else the first look if it was finished; None where neither is."""
        with self._lock:
            for known in (request, QUICK):
                if known in self._kept and (known == request or self._kept[known].attrs["complete"]):
                    return LatencyDrawing(known, self._kept[known], running=False)
        return None

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()


MEASURED = Measured()


def run_sweep(
    request: LatencySweepSpec, drawn: Callable[[LatencyDrawing], bool], job: Job
) -> Generator[LatencyDrawing, None, LatencyDrawing]:
    """Time a sweep in steps of one point, each of which has the lane for itself.

    drawn: whether the page shows what it was sent; the next point waits for that, but not for long.

    Raises:
        ValueError: what is asked for cannot be measured, such as a dtype on this machine.
    """
    wanted = asdict(request)
    names, sizes = wanted.pop("names"), wanted.pop("sizes")
    # A sweep that is cancelled from the start checks what is asked for, and measures the machine's rates.
    start = latency_sweep(names, sizes, **wanted, cancelled=lambda: True)
    device = torch.device(start.attrs["device_type"])
    drawing = LatencyDrawing(request, start, running=True)
    for number, sweep in enumerate(stream_sweep(request, device, cancelled=job.cancelled.is_set)):
        drawing = LatencyDrawing(request, sweep, running=True)
        MEASURED.put(request, sweep)
        yield drawing
        wait_until(partial(drawn, drawing), job, DRAWING if number else BUILDING)
    return LatencyDrawing(request, drawing.sweep, running=False)


def wait_until(drawn: Callable[[], bool], job: Job, most: float = DRAWING) -> None:
    """Wait until the page has drawn and is calm, the job is cancelled, or `most` seconds are over."""
    if drawn():
        return
    deadline = time.monotonic() + most
    while not drawn() and time.monotonic() < deadline and not job.cancelled.wait(0.005):
        pass
    job.cancelled.wait(CALM)
