"""How the parts of the registered models read positions: the relation of every module, and the order of the parts.

A family says here, in one place, how its parts reach: POINTWISE and SERIES list the classes that need no more than a
line, functions marked `reads` make the relations of the others, and functions marked `runs` give the order of a model's
parts. Nothing is guessed: a class that is not here, or that overrides what a listed class computes, is refused.

Models are taken as in evaluation, where a batch norm acts point by point.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

from workbench.models import ancestors, cswin, davit, gspn, gspn2, hilo, maxvit, nat, parts, positions, power, twins
from workbench.models.attention import SelfAttention
from workbench.models.base import VisionModel
from workbench.models.hierarchy import Hierarchy

from .dependence import Everything, Grid, Keys, Passes, Relation, Scan, Series, Statistic, Sum, convolution

#: Each position on its own; the models apply them over channels.
POINTWISE = (
    nn.Identity,
    nn.Linear,
    nn.LayerNorm,
    nn.BatchNorm2d,
    nn.GELU,
    parts.Linear2d,
    parts.LayerNorm2d,
)

#: Submodules in the order of the forward pass; a tuple of them is a branch that is added to its own input.
SERIES: dict[type[nn.Module], tuple[str | tuple[str, ...], ...]] = {
    parts.Mlp: ("fc1", "fc2"),
    parts.PatchEmbed: ("proj", "norm"),
    parts.Block: (("norm1", "attn"), ("norm2", "mlp")),
    positions.PositionEncoding: (("proj",),),
    gspn.Block: (("norm", "op"), ("norm2", "mlp")),
    ancestors.Block: (("norm", "op"), ("norm2", "mlp")),
    gspn2.Block: ("lpu", ("norm", "op"), "lpu2", ("norm2", "mlp")),
    gspn2.LocalPerception: (("conv",),),
    cswin.ConvEmbed: ("proj", "norm"),
    cswin.ConvMerging: ("conv", "norm"),
    nat.Tokeniser: ("proj", "norm"),
    nat.Downsample: ("reduction", "norm"),
    davit.PatchEmbed: ("norm", "proj"),  # or the norm last, which reads the same
    davit.DualBlock: ("cpe.0", ("norm1", "attn"), "cpe.1", ("norm2", "mlp")),
    maxvit.Stem: ("conv1", "norm1", "conv2"),
    maxvit.FamilyMlp: ("fc1", "fc2"),
}

Function = TypeVar("Function", bound=Callable[..., Any])
Table = dict[type[nn.Module], Callable[..., Any]]

_READERS: Table = {}
_ORDERS: Table = {}


def reads(*kinds: type[nn.Module]) -> Callable[[Function], Function]:
    """Decorate (module, grid of its input) -> its relation, for modules of these classes."""
    return _into(_READERS, kinds)


def runs(*kinds: type[VisionModel]) -> Callable[[Function], Function]:
    """Decorate (model) -> its parts by name, in the order of the forward pass, for models of these classes."""
    return _into(_ORDERS, kinds)


def _into(table: Table, kinds: tuple[type[nn.Module], ...]) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        table.update(dict.fromkeys(kinds, function))
        return function

    return add


def relation(module: nn.Module, grid: Grid) -> Relation:
    """Which positions of its input, a map of `grid`, the outputs of a module depend on.

    Raises:
        TypeError: the module is of a class that this file does not know.
    """
    return _of(_READERS, module)(module, grid)


def parts_until(model: VisionModel, layer: str) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model by name, in the order of the forward pass, up to the block of `layer`.

    Raises:
        TypeError: the model is of a class that this file does not know.
        ValueError: the model has no such layer.
    """
    block, _ = model.block(layer)
    for name, part in _of(_ORDERS, model)(model):
        yield name, part
        if part is block:
            return


def _of(table: Table, module: nn.Module) -> Callable[..., Any]:
    """The function of the module's class, or of a parent of which it overrides nothing that computes."""
    kind = type(module)
    for parent in kind.__mro__:
        if parent in table:
            return table[parent]
        if "forward" in vars(parent) or "freeze" in vars(parent):
            break
    raise TypeError(
        f"Which positions a {kind.__module__}.{kind.__qualname__} reads is not known: workbench.analysis."
        "model_dependence must say it for its class."
    )


def _pair(value: Any) -> Grid:
    return value if isinstance(value, tuple) else (value, value)


@reads(*POINTWISE)
def _pointwise(module: nn.Module, grid: Grid) -> Relation:
    return Relation(grid)


@reads(*SERIES)
def _listed(module: nn.Module, grid: Grid) -> Relation:
    kind = next(parent for parent in type(module).__mro__ if parent in SERIES)
    return _series(module, grid, *SERIES[kind])


def _series(module: nn.Module, grid: Grid, *names: str | tuple[str, ...]) -> Series:
    """Submodules one after the other; names as in SERIES."""
    steps: list[Relation] = []
    for name in names:
        inside = steps[-1].grid if steps else grid
        if isinstance(name, str):
            steps.append(relation(module.get_submodule(name), inside))
        else:
            steps.append(Sum(Relation(inside), _series(module, inside, *name)))
    return Series(steps)


@reads(nn.Sequential)
def _sequential(module: nn.Sequential, grid: Grid) -> Relation:
    return _series(module, grid, *(name for name, _ in module.named_children()))


@reads(nn.Conv2d)
def _convolved(module: nn.Conv2d, grid: Grid, after: int = 0) -> Relation:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise TypeError(
            "Which positions a convolution reads is known for padding by a number of zeros; "
            f"got padding={module.padding!r} and padding_mode={module.padding_mode!r}."
        )
    kernel, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    return convolution(grid, kernel, stride, _pair(module.padding), dilation, after)


@reads(maxvit.Strided)
def _strided(module: maxvit.Strided, grid: Grid) -> Relation:
    return _convolved(module, grid, after=1)


@reads(nn.AvgPool2d)
def _pooled(module: nn.AvgPool2d, grid: Grid) -> Relation:
    if module.ceil_mode:
        raise TypeError("Which positions a pooling reads is known for ceil_mode=False; got ceil_mode=True.")
    return convolution(grid, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding))


@reads(parts.PatchMerging)
def _merged(module: parts.PatchMerging, grid: Grid) -> Relation:
    return convolution(grid, (2, 2), (2, 2))


@reads(parts.GlobalResponseNorm)
def _normalised(module: parts.GlobalResponseNorm, grid: Grid) -> Relation:
    return Statistic(grid, "global response norm")


@reads(maxvit.SqueezeExcitation)
def _excited(module: maxvit.SqueezeExcitation, grid: Grid) -> Relation:
    return Statistic(grid, "squeeze-excitation")


@reads(davit.ChannelAttention)
def _channels(module: davit.ChannelAttention, grid: Grid) -> Relation:
    # A is made from the keys and values of all positions, and applied to each position's query.
    return Statistic(grid, "channel attention")


@reads(gspn.Propagation)
def _propagated(module: gspn.Propagation, grid: Grid) -> Relation:
    before = _series(module, grid, "in_proj", "conv2d")
    after = _series(module, grid, "out_norm", "grn", "out_proj")
    return Series([before, Scan(grid, module.chunk, module.merge), after])


@reads(gspn2.ProxyPropagation)
def _propagated_by_proxy(module: gspn2.ProxyPropagation, grid: Grid) -> Relation:
    # The input that joins again is read by the scan anyway, and the projections are pointwise.
    return Series([Scan(grid, module.chunk, module.merge), _series(module, grid, "out_norm", "grn")])


@reads(ancestors.SignedPropagation)
def _propagated_with_signs(module: ancestors.SignedPropagation, grid: Grid) -> Relation:
    return _of_ancestor(module, grid, Scan(grid, module.chunk, "aligned"))


@reads(ancestors.SlicePasses)
def _passed(module: ancestors.SlicePasses, grid: Grid) -> Relation:
    return _of_ancestor(module, grid, Passes(grid, tuple(module.passes), module.kernel))


@reads(ancestors.IsotropicDiffusion)
def _diffused(module: ancestors.IsotropicDiffusion, grid: Grid) -> Relation:
    # Each step reads the eight neighbours, whose weights are predicted point by point.
    reach = min(module.steps, max(grid))
    return _of_ancestor(module, grid, convolution(grid, (2 * reach + 1,) * 2, padding=(reach, reach)))


def _of_ancestor(module: ancestors.Ancestor, grid: Grid, mixing: Relation) -> Relation:
    after = _series(module, grid, "out_norm", "out_proj")
    return Series([_series(module, grid, "in_proj", "conv2d"), mixing, after])


# Their `freeze` rotates or scales queries and keys, each position on its own. LePE, which StripeAttention adds, is a
# convolution inside the stripes, whose positions the attention reads anyway.
@reads(SelfAttention, power.RotaryAttention, maxvit.WindowAttention, cswin.StripeAttention)
def _attention(module: SelfAttention, grid: Grid) -> Relation:
    padded = module.padded(grid)
    return Keys(grid, module.pattern(*padded), padded)


# Every query reads the keys of all cells, and the cells cover the map.
@reads(twins.ReducedAttention, hilo.HiLoAttention)
def _to_cells(module: nn.Module, grid: Grid) -> Relation:
    return Everything(grid)


@reads(maxvit.MBConv)
def _bottleneck(module: maxvit.MBConv, grid: Grid) -> Relation:
    names = ("pre_norm", "conv1_1x1", "norm1", "conv2_kxk", "norm2", "se", "conv3_1x1")
    return Sum(relation(module.shortcut, grid), _series(module, grid, *names))


@runs(Hierarchy, gspn.ScanHierarchy)
def _staged(model: Hierarchy | gspn.ScanHierarchy) -> Iterator[tuple[str, nn.Module]]:
    yield "patch_embed", model.patch_embed
    for i in range(len(model.stages)):
        yield from _stage(model, i)


@runs(positions.PositionedHierarchy)
def _positioned(model: positions.PositionedHierarchy) -> Iterator[tuple[str, nn.Module]]:
    yield "patch_embed", model.patch_embed
    for i, encoding in enumerate(model.positions):
        yield f"stage{i + 1}.positions", encoding
        yield from _stage(model, i)


def _stage(model: VisionModel, index: int) -> Iterator[tuple[str, nn.Module]]:
    stage = model.stages[index]
    assert isinstance(stage, parts.Stage)
    for j, block in enumerate(stage.blocks, 1):
        yield f"stage{index + 1}.block{j}", block
    yield f"stage{index + 1}.downsample", stage.downsample


@runs(davit.DaViT)
def _dual(model: davit.DaViT) -> Iterator[tuple[str, nn.Module]]:
    for i, embed in enumerate(model.patch_embeds, 1):
        yield f"stage{i}.patch_embed", embed
        yield from ((name, half) for name, (half, _) in model.blocks().items() if name.startswith(f"stage{i}."))


@runs(maxvit.MaxViT)
def _multi_axis(model: maxvit.MaxViT) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", model.stem
    for name, block in model.named_blocks():
        yield name, block.conv
        yield f"{name}.window", block.attn_block
        yield f"{name}.grid", block.attn_grid
