"""The Kernels page: what every Triton kernel uses and does on each GPU, compiled here without one."""

from functools import partial
from typing import Any, Self

import numpy as np
import panel as pn
import param

from kernels.compiled import MISSING
from kernels.inspect import (
    MAPS,
    OPS,
    CompiledKernel,
    has_triton,
    known_targets,
    tile_boxes,
)
from workbench.names import unknown
from workbench.plots.kernels import mix_caption, tile_caption

from .kernel_code import CodePane
from .kernel_export import Downloads, python_code
from .kernel_figures import MixFigure, TileFigure
from .kernel_layout import KernelLayout
from .kernel_request import Listing, Pair, compile_pairs, is_compiled, kernel_names, row_of, show_kernel
from .kernel_tables import (
    COLUMNS,
    cells,
    constants_line,
    frame,
    numbers_table,
    plans_table,
    status_line,
    target_names,
)
from .lane import Job
from .page import PageView
from .state import session_document, when_loaded
from .tables import caption_html

#: All operators.
ALL = "all"


class KernelsView(PageView):
    """A table of kernels, and one of them in detail; see `PageView`."""

    LINK = ("kernel", "target", "targets", "op", "find", "side")

    EXTENSIONS = ("tabulator",)

    kernel = param.String(default="scan_rows fp32 64 wide")
    target: Any = param.Selector(default="sm_90", objects=target_names())
    targets = param.List(default=["sm_90"], item_type=str)
    op: Any = param.Selector(default=ALL, objects=[ALL, *OPS])
    find = param.String(default="")
    side: Any = param.Selector(default=MAPS[0], objects={f"{side} x {side}": side for side in MAPS})

    def __init__(self, **params: Any) -> None:
        self.names = kernel_names()
        known = [name for _, name in self.names]
        if params.get("kernel", known[0]) not in known:
            raise ValueError(unknown("kernel", str(params["kernel"]), known))
        known_targets(params.get("targets", ()))
        super().__init__(**params)
        if self.kernel not in known:
            self.kernel = known[0]
        self._listing: Listing | None = None
        self._wanted: list[Pair] = []  # what "compile all" is at work on
        self.mix, self.tile = MixFigure(), TileFigure()
        self.python = CodePane("kernel-python", partial(self._file, "py"))
        self.assembly = CodePane("kernel-assembly", partial(self._file, "ptx"))
        self.downloads = Downloads(self)
        self.layout = KernelLayout(self)
        self.controls, self.body = self.layout.controls, self.layout.body
        self._try(self._open)
        self.param.watch(lambda *_: self._changed(), ["kernel", "target", "targets"])
        self.param.watch(lambda *_: self._fill(), ["op", "find"])
        self.param.watch(lambda *_: self._show_plans(), ["side"])
        when_loaded(self._loaded)

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        """The page, which needs no model.

        Raises:
            ValueError: an image, which it has no use for.
        """
        if image is not None:
            raise ValueError("The page of kernels shows no image: leave `image` out.")
        return cls(**state)

    def _open(self) -> None:
        """The table with what needs no compiler."""
        self._fill()
        self._show_plans()
        self._tell()

    def _loaded(self) -> None:
        """Compile the kernel that is looked at, once the browser shows the table."""
        if session_document() is not None:
            pn.state.on_session_destroyed(lambda context: self._cancel_all())  # nobody waits for the rest
        self.layout.table.selection = []  # the browser's table forgets what was selected before it was built
        self._mark()
        self.refresh()

    def _cancel_all(self) -> None:
        for owner in ("picture", "all"):
            self.cancel(owner)

    # The table

    def pairs(self) -> list[tuple[str, str, str]]:
        """(op, name, target) of every row of the table."""
        words = self.find.lower().split()
        names = [
            (op, name) for op, name in self.names if self.op in (ALL, op) and all(w in name.lower() for w in words)
        ]
        return [(op, name, target) for op, name in names for target in self.targets or [self.target]]

    def listed(self) -> list[dict[str, Any]]:
        """The rows of the table with all their numbers."""
        return [row_of(*pair) for pair in self.pairs()]

    def _fill(self) -> None:
        self._drawing = self.pairs()
        table = self.layout.table
        with pn.io.hold():
            table.value = frame(self.listed())
            self._mark()
            self._count()

    def _mark(self) -> None:
        """Select the row of the kernel that is looked at."""
        shown = [n for n, (_, *pair) in enumerate(self._drawing) if tuple(pair) == (self.kernel, self.target)]
        if self.layout.table.selection != shown:
            self.layout.table.selection = shown

    def choose(self, row: int) -> None:
        """Look at the kernel of a row of the table."""
        if 0 <= row < len(self._drawing):
            _, kernel, target = self._drawing[row]
            self.param.update(kernel=kernel, target=target)

    def _patch(self, found: list[CompiledKernel]) -> None:
        """Write the numbers of compiled kernels into the table."""
        places = {(name, target): n for n, (_, name, target) in enumerate(self._drawing)}
        changes: dict[str, list[tuple[int, Any]]] = {column: [] for column in COLUMNS[3:]}
        for kernel in found:
            place = places.get((kernel.name, kernel.target))
            if place is not None:
                for column, value in list(zip(COLUMNS, cells(kernel.row()), strict=True))[3:]:
                    if not (isinstance(value, float) and np.isnan(value)):
                        changes[column].append((place, value))
        changes = {column: cells_ for column, cells_ in changes.items() if cells_}
        if changes:
            self.layout.table.patch(changes)

    # One kernel

    def _changed(self) -> None:
        known = [name for _, name in self.names]
        if self.kernel not in known:
            self.refuse(ValueError(unknown("kernel", self.kernel, known)))
            return
        self._messages.visible = False
        if [(name, target) for _, name, target in self._drawing] != [pair[1:] for pair in self.pairs()]:
            self._fill()
        self._mark()
        self._tell()
        self.refresh()

    def shown_targets(self) -> list[str]:
        """The targets that are compared, in the order of `TARGETS`."""
        return [target for target in target_names() if target in (self.target, *self.targets)]

    def refresh(self) -> None:
        """Let the lane compile the kernel that is looked at, in place of one that it still waits for."""
        if not has_triton():
            return
        run = partial(show_kernel, self.kernel, self.shown_targets(), self.target)
        self.submit(run, lambda nothing: None, partly=self._arrived)

    def _arrived(self, found: list[CompiledKernel] | Listing) -> None:
        if isinstance(found, Listing):
            self._show_listing(found)
            return
        with pn.io.hold():
            self._patch(found)
            if any(kernel.name == self.kernel for kernel in found):
                self._tell()
            self._count()

    def _show_listing(self, listing: Listing) -> None:
        if (listing.name, listing.target) == (self.kernel, self.target):
            self._listing = listing
            with pn.io.hold():
                self._tell()

    def _tell(self) -> None:
        """Everything about the kernel that is looked at."""
        op = next(op for op, name in self.names if name == self.kernel)
        row = row_of(op, self.kernel, self.target)
        rows = [row_of(op, self.kernel, t) for t in self.shown_targets() if is_compiled((self.kernel, t))]
        layout = self.layout
        self._status.object = status_line(row) if has_triton() else layout.without_triton(row)
        self._code.value = python_code(self.kernel, self.shown_targets())
        layout.detail.visible = bool(rows)
        if rows:
            self.mix.show(rows)
            layout.mix_caption.object = caption_html(mix_caption(rows))
            layout.numbers.object = numbers_table(rows)
            layout.constants.object = caption_html(constants_line(rows[-1] if "mix" not in row else row))
            self._show_tile()
        self._show_texts()

    def _show_tile(self) -> None:
        tile = tile_boxes(self.kernel)
        self.layout.tile.visible = tile is not None
        if tile is not None:
            self.tile.show(tile)
            self.layout.tile_caption.object = caption_html(tile_caption(tile))

    def _show_texts(self) -> None:
        listing = self._listing
        current = listing is not None and (listing.name, listing.target) == (self.kernel, self.target)
        self.layout.code.visible = current
        if listing is not None and current:
            kind = "AMD assembly" if listing.target.startswith("gfx") else "PTX"
            self.python.show_text(f"Python of {listing.name}", listing.python)
            self.assembly.show_text(f"{kind} for {listing.target}", shortened(listing.assembly))

    def _file(self, suffix: str) -> tuple[str, str]:
        """The name and the text of a file of what is shown."""
        if self._listing is None:
            raise ValueError("There is nothing to save: no kernel is compiled yet.")
        name, target, python, assembly = self._listing
        stem = name.replace(" ", "_")
        if suffix == "py":
            return f"{stem}.py", python
        return f"{stem}_{target}.{'s' if target.startswith('gfx') else 'ptx'}", assembly

    def _show_plans(self) -> None:
        self.layout.plans.object = plans_table(self.side)

    # All kernels

    def compile_all(self, *_: Any) -> None:
        """Let the lane compile every kernel of the table, a few at a turn."""
        self._messages.visible = False
        if not has_triton():
            self.refuse(ValueError(MISSING))
            return
        self._wanted = [(name, target) for _, name, target in self._drawing]
        self._count()
        self.submit(partial(_all, list(self._wanted)), self._finished, owner="all", partly=self._arrived)

    def halt(self, *_: Any) -> None:
        """Stop compiling; what is compiled stays."""
        self.cancel("all")
        self._wanted = []
        self._count()

    def _finished(self, nothing: None) -> None:
        self._wanted = []
        self._count()

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        self._wanted = []
        self._count()

    def _count(self) -> None:
        """How many kernels of the table are compiled."""
        pairs = [(name, target) for _, name, target in self._drawing or ()]
        self.layout.show_progress(sum(map(is_compiled, pairs)), len(pairs), bool(self._wanted))


def _all(pairs: list[Pair], job: Job) -> Any:
    """The steps of a job that compiles pairs; nothing remains to be delivered at its end."""
    return compile_pairs(pairs, job)


def shortened(assembly: str) -> str:
    """PTX or assembly without the tables for a debugger at its end, which are most of it."""
    return assembly.split("\n\t.section\t.debug")[0].rstrip() + "\n"
