"""A receptive field while it is averaged: partial results, images left out, and runs that go on after a kill."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from workbench.analysis.receptive_field import RunningField, receptive_field, resolve, stream
from workbench.models import load_model

SIZE = (20, 28)


@pytest.fixture
def images():
    return torch.randn(7, 3, *SIZE)


@pytest.fixture
def net():
    net = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.GELU(), nn.Conv2d(6, 4, 3, 1, 1))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return net


def spec_of(net, **options):
    return resolve(net, size=SIZE, **{"batch": 2, "unit": "1x2"} | options)


def test_a_partial_result_is_that_of_the_images_so_far(net, images):
    counts = []
    for field in stream(net, images, spec_of(net)):
        counts.append(field.count)
        partial, alone = field.result(), receptive_field(net, images[: field.count], unit="1x2", batch=2)
        assert partial.attrs["complete"] == (field.count == 7)
        partial.attrs["complete"] = True
        xr.testing.assert_identical(partial, alone)
        assert field.planned == 7
    assert counts == [2, 4, 6, 7]


def test_the_last_of_an_iterator_of_unknown_length_is_known_to_be_the_last(net, images):
    fields = [(field.planned, field.complete) for field in stream(net, (x[None] for x in images[:4]), spec_of(net))]
    assert fields == [(None, False), (None, True)]


def test_progress_sees_every_batch(net, images):
    seen = []
    receptive_field(net, images, batch=3, progress=lambda field: seen.append((field.count, field.planned)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def saved(field):
    """A state that has been in a file."""
    file = io.BytesIO()
    np.savez(file, **field.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_a_run_goes_on_after_a_kill_bit_for_bit(net, images, batches):
    spec = spec_of(net)
    whole = [field.result() for field in stream(net, images, spec)][-1]
    for number, field in enumerate(stream(net, images, spec), 1):
        if number == batches:
            state = saved(field)
            break
    field = RunningField.restore(state, spec, net)
    assert (field.count, field.complete) == (min(7, 2 * batches), batches == 4)
    following = [each.count for each in stream(net, iter(images[:, None]), spec, start=field)]
    assert following == [4, 6, 7][batches - 1 :]
    xr.testing.assert_identical(field.result(), whole)
    assert field.result().attrs["images"] == 7


def test_a_cancel_inside_a_batch_leaves_a_state_from_which_the_run_goes_on(net, images):
    spec = spec_of(net)
    whole = [field.result() for field in stream(net, images, spec)][-1]
    polls = iter([False] * 40)
    field = RunningField(spec, net)
    list(stream(net, images, spec, cancelled=lambda: next(polls, True), start=field))
    assert 0 < field.count < 7
    again = RunningField.restore(saved(field), spec, net)
    list(stream(net, images, spec, start=again))
    xr.testing.assert_identical(again.result(), whole)


def test_a_state_from_before_the_first_batch_is_a_start(net, images):
    spec = spec_of(net)
    field = RunningField.restore(saved(RunningField(spec, net)), spec, net)
    assert (field.count, field.complete) == (0, False)
    xr.testing.assert_identical(list(stream(net, images, spec, start=field))[-1].result(), field.result())
    assert field.count == 7


def test_a_run_is_complete_when_nothing_is_left_for_a_restored_field(net, images):
    spec = spec_of(net)
    field = RunningField.restore(saved(next(stream(net, images, spec))), spec, net)
    assert (field.count, field.complete) == (2, False)
    assert list(stream(net, images[:2], spec, start=field)) == []
    xr.testing.assert_identical(field.result(), receptive_field(net, images[:2], unit="1x2", batch=2))


def test_a_state_goes_on_only_with_its_own_spec_model_and_images(net, images):
    spec = spec_of(net)
    field = next(stream(net, images, spec))
    state = saved(field)
    other = nn.Sequential(*net, nn.ReLU())
    for wrong_spec, wrong_net in ((replace(spec, gradient="abs"), net), (replace(spec, batch=3), net), (spec, other)):
        with pytest.raises(ValueError, match="saved state is of another run"):
            RunningField.restore(state, wrong_spec, wrong_net)
    for wrong in (images.flip(0), images[:1]):
        with pytest.raises(ValueError, match="first 2 images are not those"):
            list(stream(net, wrong, spec, start=RunningField.restore(state, spec, net)))


def test_an_image_whose_gradient_is_not_finite_is_left_out_and_counted(net, images):
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoilt = images.clone()
        spoilt[1, 0, 9, 13] = spoilt[4, 2, 10, 14] = bad
        for gradient in ("relu", "relu_of_sum"):
            result = receptive_field(net, spoilt, batch=2, gradient=gradient)
            assert (int(result["count"]), int(result["nonfinite"]), result.attrs["images"]) == (5, 2, 7)
            good = receptive_field(net, images[[0, 2, 3, 5, 6]], batch=2, gradient=gradient)
            np.testing.assert_allclose(result["map"], good["map"], atol=1e-6 * float(good["map"].max()))


class Pole(nn.Module):
    """A gradient of minus infinity where the picture is 0, whose positive part is 0."""

    def forward(self, x):
        return -x.sqrt()


@pytest.mark.parametrize("gradient", ["relu", "relu_of_sum"])
def test_minus_infinity_is_not_a_positive_part_of_zero(gradient):
    x = torch.ones(2, 3, 4, 5)
    x[0, 1, 2, 3] = 0
    options = {"channels": "channel 1", "gradient": gradient}
    result = receptive_field(Pole(), x, unit=(2, 3), **options)
    assert (int(result["count"]), int(result["nonfinite"])) == (1, 1)
    nothing = receptive_field(Pole(), x[:1], unit=(2, 3), **options)
    assert "No image had a finite gradient" in nothing.attrs["note"]
    assert not nothing["map"].any()
    # One unit spoils the image for all: every map is the mean of the same images.
    both = receptive_field(Pole(), x, unit="4x5", **options)
    assert (int(both["count"]), int(both["nonfinite"])) == (1, 1)


def test_sums_are_kept_in_64_bits(net, images):
    tiny, field = np.full((1, 2, *SIZE), 2.0**-40), RunningField(spec_of(net), net)
    field.add(np.ones((1, 2, *SIZE)))
    for _ in range(64):
        field.add(tiny)
    assert (field.state()["sums"] == 1 + 2.0**-34).all()


def test_the_theoretical_field_is_found_once(monkeypatch):
    from workbench.analysis import running_field

    asked, find = [], running_field.theoretical_field

    def counted(*request):
        asked.append(request[1:])
        return find(*request)

    monkeypatch.setattr(running_field, "theoretical_field", counted)
    model = load_model("swin_nano", device="cpu")
    spec = resolve(model, "stage1.block1", "1x2", 32, batch=1)
    for field in stream(model, ["coffee", "brick"], spec):
        field.result()
    assert asked == [("stage1.block1", (8, 4), (32, 32)), ("stage1.block1", (8, 12), (32, 32))]


def test_maps_of_a_result_are_its_own(net, images):
    field = next(stream(net, images, spec_of(net)))
    result = field.result()
    result["map"][:] = 0
    assert field.result()["map"].any()
