"""The fused mixer in Triton against the definition in float64: values and all gradients, however the work is cut.

All fresh memory is poisoned with NaN. Triton runs in its interpreter where there is no GPU, so maps are tiny.
"""

import pytest
import torch

from kernels.propagation import DIRECTIONS, NORMALISATIONS, Mix, mix, mix_gpu

NAMES = ("v", "logits", "lam", "u", "skip", "weight")


def drawn(size, *, batch=1, channels=2, count=4, groups=None, lam=-1, u=-1, skip=-1, spread=3.0):
    """Random inputs of `mix`; lam, u and skip have that many channels, -1 for as many as v, or are None."""
    channels_of = [channels if c == -1 else c for c in (lam, u, skip)]
    maps = [None if c is None else torch.randn(count, batch, c, *size) for c in channels_of]
    logits = spread * torch.randn(count, 3, batch, groups or channels, *size)
    return [torch.randn(batch, channels, *size), logits, *maps, torch.randn(count)]


def compare(agree, device_of, inputs, dtype=torch.float32, **settings):
    """Values and all gradients of the kernels against the reference in float64."""
    stored = [None if t is None else t.to(dtype) for t in inputs]
    given = [None if t is None else t.to(device_of("triton")).requires_grad_() for t in stored]
    exact = [None if t is None else t.double().requires_grad_() for t in stored]
    value, definition = mix(*given, backend="triton", **settings), mix(*exact, backend="reference", **settings)
    assert value.dtype == dtype
    grad = torch.randn(value.shape).to(dtype)
    # A term of the sum for each neighbour and line, and of a gradient for each direction and channel that share.
    terms = 8 * max(value.shape[-2:]) * len(inputs[-1])
    agree(value, definition, terms)
    wanted = [t for t in exact if t is not None]
    gradients = torch.autograd.grad(value, [t for t in given if t is not None], grad.to(value.device))
    # A single line reads no logits, and a graph without them has no gradient for them.
    definitions = torch.autograd.grad(definition, wanted, grad.double(), allow_unused=True)
    for tensor, gradient, found in zip(wanted, gradients, definitions, strict=True):
        found = torch.zeros_like(tensor) if found is None else found
        # Gradients of a lone gate, which is 1 whatever its logit, cancel to 0.
        scale = max(found.abs().max().item(), grad.abs().max().item() * max(1.0, stored[0].abs().max().item()))
        agree(gradient, found, terms, scale=scale)


@pytest.fixture(params=["a direction a program", "all directions in one"])
def cut(request, monkeypatch):
    """Both ways to spread the directions over programs."""
    monkeypatch.setattr(mix_gpu, "_ENOUGH_WARPS", 0 if request.param.startswith("all") else 10**9)


@pytest.mark.usefixtures("poison", "cut")
@pytest.mark.parametrize(
    ("size", "chunk"), [((1, 1), None), ((1, 5), 2), ((3, 2), None), ((4, 8), 2), ((7, 5), 3)], ids=str
)
def test_odd_small_and_oblong_maps_agree(size, chunk, agree, device_of):
    compare(agree, device_of, drawn(size), chunk=chunk)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("chunk", [1, 4])
def test_spans_of_whole_chunks_are_programs_of_their_own(chunk, agree, device_of, monkeypatch):
    monkeypatch.setattr(mix_gpu, "_LINES_PER_PROGRAM", 4)
    directions = ("right_left", "bottom_top")
    settings = Mix(directions, chunk, "sigmoid")
    assert mix_gpu.plan(settings, (1, 1, 6, 9), shared=False).grid[1] == 3
    compare(agree, device_of, drawn((6, 9), channels=1, count=2), chunk=chunk, directions=directions)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("rule", [rule for rule in NORMALISATIONS if rule != "sigmoid"])
def test_every_rule_agrees(rule, agree, device_of):
    spread = 0.2 if rule in ("tanh", "none") else 3.0  # the rules that are not stable grow along the lines
    inputs = drawn((5, 6), count=2, spread=spread)
    compare(agree, device_of, inputs, rule=rule, directions=("right_left", "top_bottom"))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    ("groups", "lam", "u", "skip"),
    [(1, 5, 5, 5), (5, 1, 1, 1), (1, 1, None, 1), (5, None, 5, None), (1, None, None, None)],
)
def test_maps_may_be_shared_by_channels_or_absent(groups, lam, u, skip, agree, device_of):
    inputs = drawn((3, 6), channels=5, count=2, groups=groups, lam=lam, u=u, skip=skip)
    compare(agree, device_of, inputs, chunk=2, directions=("left_right", "bottom_top"))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    "directions", [("right_left",), ("top_bottom", "left_right", "top_bottom"), ("bottom_top", "left_right")], ids=len
)
def test_directions_may_be_few_and_repeat(directions, agree, device_of):
    compare(agree, device_of, drawn((3, 4), batch=2, count=len(directions)), directions=directions)


@pytest.mark.usefixtures("poison", "cut")
@pytest.mark.parametrize(("dtype", "groups"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.bfloat16, 1)], ids=str)
def test_storage_of_16_bits_is_rounded_once(dtype, groups, agree, device_of):
    inputs = drawn((3, 6), count=2, groups=groups)
    compare(agree, device_of, inputs, dtype=dtype, directions=("left_right", "bottom_top"))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_that_is_asked_for_alone_is_the_one_asked_for_with_all(wanted, device_of):
    inputs = [t.to(device_of("triton")) for t in drawn((2, 3), count=1, groups=1)]
    every = [t.clone().requires_grad_() for t in inputs]
    alone = [t.clone().requires_grad_(name == wanted) for t, name in zip(inputs, NAMES, strict=True)]
    for leaves in (every, alone):
        mix(*leaves, directions="bottom_top", backend="triton").square().sum().backward()
    at = NAMES.index(wanted)
    torch.testing.assert_close(alone[at].grad, every[at].grad)
    assert [t.grad is not None for t in alone] == [name == wanted for name in NAMES]


@pytest.mark.usefixtures("poison")
def test_strided_inputs_give_what_contiguous_ones_give(device_of):
    inputs = [t.to(device_of("triton")) for t in drawn((2, 3), count=1)]
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t for t in inputs]
    found, wanted = (mix(*given, directions="left_right", backend="triton") for given in (strided, inputs))
    assert torch.equal(found, wanted)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("value", [-100.0, -36.0, -30.0, -17.0, 100.0])
def test_extreme_logits_give_what_the_definition_gives(value, device_of):
    inputs = drawn((2, 4), channels=1, count=1)
    inputs[1] = torch.full_like(inputs[1], value)
    inputs[1][:, 1] += 3 * torch.randn_like(inputs[1][:, 1])
    exact = mix(*(t.double() for t in inputs), backend="reference", directions="left_right")
    found = mix(*(t.to(device_of("triton")) for t in inputs), backend="triton", directions="left_right")
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("poison")
def test_a_logit_that_is_not_a_number_shows_where_it_is_read_and_nowhere_else(device_of):
    inputs = [t.to(device_of("triton")) for t in drawn((3, 4), channels=1, count=1)]
    inputs[1][0, 0, 0, 0, 0, 1] = torch.inf  # no neighbour above the first row
    inputs[1][0, 2, 0, 0, 2, 3] = torch.nan  # nor below the last
    inputs[1][0, :, 0, 0, :, 0] = torch.nan  # the first line reads nothing
    assert mix(*inputs, directions="left_right", backend="triton").isfinite().all()
    inputs[1][0, 1, 0, 0, 0, 3] = torch.nan
    found = mix(*inputs, directions="left_right", backend="triton").isfinite()
    assert found.flatten().tolist() == [at != 3 for at in range(12)]


@pytest.mark.usefixtures("poison")
def test_maps_with_lines_that_no_program_holds_are_composed(agree, device_of, monkeypatch):
    monkeypatch.setattr(mix_gpu, "LIMIT", 4)
    monkeypatch.setattr(mix_gpu, "forward", None)
    inputs = drawn((2, 5), channels=1, count=1)
    compare(agree, device_of, inputs, directions="right_left")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("side", [1, 7, 14, 28, 56, 100, 256, 1024])
@pytest.mark.parametrize("chunk", [None, 2, 7])
def test_a_plan_covers_the_map_once(side, chunk, shared):
    shape = (3, 10, side, 2 * side if side < 512 else side)
    cut = mix_gpu.plan(Mix(DIRECTIONS, chunk, "sigmoid"), shape, shared)
    options, (programs, pieces, parts) = cut.options, cut.grid
    batch, channels, height, width, chunk_rows, chunk_cols, span_rows, span_cols, horizontals, entries, per = cut.sizes
    assert (batch, channels, height, width, horizontals, entries) == (*shape, 2, 4)
    assert programs == batch * -(-channels // options["CB"])
    assert options["ROWS"] >= height
    assert options["COLS"] >= width
    assert parts * per == entries
    for lines, span, chunked in ((height, span_rows, chunk_rows), (width, span_cols, chunk_cols)):
        assert span * pieces >= lines
        assert span == lines or (span % chunked == 0 and parts == entries)
    assert width % options["WHOLE"] == 0
    assert not options["ALIGNED"] or (width % 4 == 0 and span_cols % 4 == 0)
    assert options["num_warps"] in (1, 2, 4, 8, 16, 32)
