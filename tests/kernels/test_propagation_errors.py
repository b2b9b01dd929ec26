"""Line propagation and gate normalisation answer wrong arguments with one sentence that says what is wanted."""

import pytest
import torch

from kernels.backends import BackendUnavailable
from kernels.propagation import DIRECTIONS, normalise_gates, propagate

B, C, H, W = 2, 3, 4, 5


def given(**changed):
    """Arguments of `propagate` that fit, with some of them replaced."""
    fitting = {"x": torch.randn(B, C, H, W), "gates": torch.randn(4, 3, B, C, H, W), "lam": torch.randn(4, B, C, H, W)}
    return fitting | changed


PROPAGATE = {
    "x is a list": ({"x": [1.0]}, TypeError, "x must be a tensor; got list."),
    "x is a map": ({"x": torch.ones(H, W)}, ValueError, "x must be (B, C, H, W) or (K, B, C, H, W) with K = 4"),
    "x has K = 3": ({"x": torch.ones(3, B, C, H, W)}, ValueError, "K = 4 directions and no empty axis; got (3, 2,"),
    "x has an empty axis": ({"x": torch.ones(B, C, 0, W)}, ValueError, "no empty axis; got (2, 3, 0, 5)."),
    "x is whole numbers": ({"x": torch.ones(B, C, H, W, dtype=torch.int64)}, TypeError, "x must be a floating-point"),
    "x is bool": ({"x": torch.ones(B, C, H, W, dtype=torch.bool)}, TypeError, "floating-point tensor; got torch.bool."),
    "gates are None": ({"gates": None}, TypeError, "gates must be a tensor; got NoneType."),
    "gates of two channels": (
        {"gates": torch.ones(4, 3, B, 2, H, W)},
        ValueError,
        "gates must be (4, 3, 2, 3, 4, 5), or (4, 3, 2, 1, 4, 5) if shared; got (4, 3, 2, 2, 4, 5).",
    ),
    "gates of another size": ({"gates": torch.ones(4, 3, B, C, W, H)}, ValueError, "got (4, 3, 2, 3, 5, 4)."),
    "gates in another order": ({"gates": torch.ones(3, 4, B, C, H, W)}, ValueError, "got (3, 4, 2, 3, 4, 5)."),
    "gates in float64": (
        {"gates": torch.ones(4, 3, B, C, H, W, dtype=torch.float64)},
        TypeError,
        "gates must have the dtype of x, torch.float32; got torch.float64.",
    ),
    "gates are whole numbers": (
        {"gates": torch.ones(4, 3, B, C, H, W, dtype=torch.int32)},
        TypeError,
        "gates must be a floating-point tensor; got torch.int32.",
    ),
    "gates on another device": (
        {"gates": torch.ones(4, 3, B, C, H, W, device="meta")},
        ValueError,
        "gates must be on the device of x, cpu; got meta.",
    ),
    "lam without directions": (
        {"lam": torch.ones(B, C, H, W)},
        ValueError,
        "lam must be (4, 2, 3, 4, 5), or (4, 2, 1, 4, 5) if shared; got (2, 3, 4, 5).",
    ),
    "lam in float16": ({"lam": torch.ones(4, B, C, H, W).half()}, TypeError, "lam must have the dtype of x"),
    "lam is a number": ({"lam": 1.0}, TypeError, "lam must be a tensor; got float."),
    "lam on another device": (
        {"lam": torch.ones(4, B, C, H, W, device="meta")},
        ValueError,
        "lam must be on the device of x, cpu; got meta.",
    ),
    "a chunk of 0": ({"chunk": 0}, ValueError, "chunk must be at least 1 line, or None"),
    "a chunk of -1": ({"chunk": -1}, ValueError, "one chunk over the whole map; got -1."),
    "a chunk of 2.5": ({"chunk": 2.5}, TypeError, "chunk must be a whole number of lines or None; got float 2.5."),
    "a chunk of True": ({"chunk": True}, TypeError, "chunk must be a whole number of lines or None; got bool True."),
    "a chunk of '2'": ({"chunk": "2"}, TypeError, "got str '2'."),
    "an unknown direction": (
        {"directions": ("left_right", "down", "right_left", "up")},
        ValueError,
        "directions must be one or more of left_right, top_bottom, right_left, bottom_top; got ('left_right', 'down',",
    ),
    "no direction": ({"directions": ()}, ValueError, "directions must be one or more of left_right, top_bottom"),
    "fewer directions than gates": ({"directions": DIRECTIONS[:3]}, ValueError, "gates must be (3, 3, 2, 3, 4, 5)"),
    "an unknown backend": (
        {"backend": "gpu"},
        ValueError,
        "backend must be one of auto, reference, cpu, triton; got 'gpu'.",
    ),
}

NORMALISE = {
    "logits are an array": (torch.ones(3).numpy(), TypeError, "logits must be a tensor; got ndarray."),
    "whole numbers": (torch.ones(4, 3, B, C, H, W, dtype=torch.int64), TypeError, "floating-point tensor; got"),
    "no direction axis": (
        torch.ones(3, B, C, H, W),
        ValueError,
        "logits must be (K, 3, B, G, H, W) with K = 4 directions and no empty axis; got (3, 2, 3, 4, 5).",
    ),
    "three directions": (torch.ones(3, 3, B, C, H, W), ValueError, "K = 4 directions and no empty axis; got (3, 3"),
    "two gates": (torch.ones(4, 2, B, C, H, W), ValueError, "got (4, 2, 2, 3, 4, 5)."),
    "an empty axis": (torch.ones(4, 3, B, 0, H, W), ValueError, "no empty axis; got (4, 3, 2, 0, 4, 5)."),
}


def sentence(error):
    """The message, which is one sentence: it ends with a full stop and has no line break."""
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("changed", "kind", "words"), PROPAGATE.values(), ids=PROPAGATE)
def test_propagate_says_what_is_wrong(changed, kind, words):
    with pytest.raises(kind) as error:
        propagate(**given(**changed))
    assert words in sentence(error)


@pytest.mark.parametrize(("logits", "kind", "words"), NORMALISE.values(), ids=NORMALISE)
def test_normalise_gates_says_what_is_wrong(logits, kind, words):
    with pytest.raises(kind) as error:
        normalise_gates(logits)
    assert words in sentence(error)


def test_normalise_gates_refuses_unknown_directions_and_backends():
    logits = torch.ones(1, 3, B, C, H, W)
    with pytest.raises(ValueError, match=r"directions must be one or more of left_right, .*; got") as error:
        normalise_gates(logits, ("diagonal",))
    assert "diagonal" in sentence(error)
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*; got 'numba'") as error:
        normalise_gates(logits, ("left_right",), backend="numba")
    assert sentence(error)


def as_float64(**tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_an_explicit_backend_that_cannot_take_the_dtype_says_so(backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for call in (
        lambda: propagate(**as_float64(**given()), backend=backend),
        lambda: normalise_gates(given()["gates"].double(), backend=backend),
    ):
        with pytest.raises(BackendUnavailable, match=rf"backend='{backend}' takes float32.*got torch.float64") as error:
            call()
        assert "use backend=" in sentence(error)


@pytest.mark.parametrize("value", [None, "0"])
def test_triton_on_a_cpu_tensor_without_the_interpreter_says_so(value, monkeypatch):
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    for call in (
        lambda: propagate(**given(), backend="triton"),
        lambda: normalise_gates(given()["gates"], backend="triton"),
    ):
        with pytest.raises(
            BackendUnavailable, match=r"GPU tensor; got one on cpu: move it with .cuda\(\), or"
        ) as error:
            call()
        assert "TRITON_INTERPRET=1" in sentence(error)


def test_one_direction_may_be_given_as_a_name():
    x, gates = torch.randn(B, C, H, W), torch.randn(1, 3, B, C, H, W)
    assert torch.equal(
        propagate(x, gates, directions="top_bottom"), propagate(x, gates, directions=("top_bottom",))
    )  # fmt: skip
