"""What every test relies on: an interpreter for Triton where there is no GPU, poisoned memory, and one tolerance.

Random inputs are seeded by the test's own name, so every test draws other numbers and draws them again on the next run.
"""

# isort: off
import kernels  # noqa: F401  (first: it sets what OpenMP reads when torch loads it)

# isort: on
import math
import os
import shutil
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which no line above does

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GPU_TESTS = Path(__file__).parent / "gpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in tests/gpu is marked so, and skipped where there is no GPU."""
    for item in items:
        if item.path.is_relative_to(GPU_TESTS):
            item.add_marker(pytest.mark.gpu)
        if not GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch.cuda.is_available() is False"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A browser test without a browser fails: `make test` brings one, so its absence is an error and no choice."""
    if item.get_closest_marker("browser") and find_chromium() is None:
        pytest.fail(
            f"Browser tests need a Chromium; there is none on PATH ({', '.join(BROWSERS)}) and Playwright has none: "
            "run `tools/ensure_chromium.sh .venv/bin/python`.",
            pytrace=False,
        )


@lru_cache(maxsize=1)
def find_chromium() -> str | None:
    """The path of a Chromium or Chrome on PATH, else of Playwright's own, else None."""
    on_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if on_path is not None:
        return on_path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """The executable that browser tests start."""
    return find_chromium()


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Fresh random numbers for each test, the same ones in every run."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh float memory comes filled with NaN, so that an element that nobody wrote shows."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fresh(*args: object, **kwargs: object) -> torch.Tensor:
            memory = allocate(*args, **kwargs)
            if memory.is_floating_point() and memory.device.type != "meta":
                memory.detach().fill_(math.nan)
            return memory

        return fresh

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def device_of() -> Callable[[str], torch.device]:
    """Backend -> the device of its tests: Triton runs on the GPU, or is interpreted on the CPU where there is none."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return lambda backend: torch.device("cuda" if backend == "triton" and not interpreted else "cpu")


@pytest.fixture
def agree() -> Callable[..., None]:
    """The one tolerance of numerical tests: `agree(actual, exact, terms)`.

    A result that sums up to `terms` products, each kept to a rounding or two of the accumulator (float32, or float64
    where the result is), is off by at most 4 terms eps times the size of what is summed; storing it and what it was
    made of costs 2 eps of the storage type. That size is `scale`, or the largest of the exact values: a scan whose
    gates sum to 1 does not grow.
    """

    def check(actual: torch.Tensor, exact: torch.Tensor, terms: int, scale: float | None = None) -> None:
        assert exact.dtype == torch.float64
        assert actual.shape == exact.shape
        assert actual.isfinite().all(), f"{int((~actual.isfinite()).sum())} of {actual.numel()} values are not finite"
        accumulator = torch.float64 if actual.dtype == torch.float64 else torch.float32
        relative = 4 * terms * torch.finfo(accumulator).eps + 2 * torch.finfo(actual.dtype).eps
        error = (actual.detach().cpu().double() - exact.detach()).abs().max().item()
        allowed = relative * (exact.detach().abs().max().item() if scale is None else scale)
        assert error <= allowed, f"off by {error:.3g}, allowed is {allowed:.3g}"

    return check
