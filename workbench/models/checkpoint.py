"""Reading weights from files, and writing them. Files are hostile: nothing in them is ever run.

Pickled files are opened with `weights_only=True`, and every refusal is one sentence that names the way out.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .base import VisionModel
from .layouts import LAYOUTS, SHAPES, Layout, Tensors, find_layout

SUFFIXES = (".safetensors", ".pth", ".pt")

#: Larger files, and files with more tensors, are not models of this project.
LARGEST_BYTES = 4 * 10**9
MOST_TENSORS = 10_000

#: Where training scripts put the weights: the entry of the model's own, and of their running average (EMA).
WRAPPERS = (("model", "model_ema"), ("state_dict", "state_dict_ema"))

DAMAGED = "{} is not a checkpoint that PyTorch can read; it may be damaged."

#: Where files that we write say which model they hold and how it was set.
NOTE = "gspn_workbench"


@dataclass(frozen=True)
class Checkpoint:
    """Weights as read from a file.

    file: its name; tensors: the weights, under our names; layout: how the file names them; found: the layout in words;
    config: the settings that the file tells; model: the name under which the workbench saved it, "" for other files.
    """

    file: str
    tensors: Tensors
    layout: Layout
    found: str
    config: dict[str, Any]
    model: str


def read(path: str | os.PathLike[str], ema: bool = False) -> Checkpoint:
    """Read a checkpoint of a known layout, on the CPU.

    Args:
        path: a .safetensors, .pth or .pt file: a bare state dict, or one wrapped as "model" or "state_dict".
        ema: take the running average of the weights, "model_ema" or "state_dict_ema", instead of the weights.

    Raises:
        ValueError: no such file, not a checkpoint, too large, in need of unpickling, or of an unknown layout.
    """
    path = Path(path)
    _check_file(path)
    content, (model, note) = (
        _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), ("", {}))
    )
    state, about_ema = _unwrap(content, ema, path.name)
    tensors = _tensors(state, path.name)
    layout = find_layout(tensors)
    if layout is None:
        known = ", ".join(known.name for known in LAYOUTS if known.family)
        raise ValueError(f"{path.name} has none of the known layouts ({known}); it begins with {_first(tensors)}.")
    if layout.family is None:
        raise ValueError(
            f"{path.name} is a {layout.name} checkpoint ({len(tensors)} keys), a layout that is known but not read."
        )
    ours = layout.translate(tensors)
    config = {**layout.settings, **note, **layout.infer(ours)}
    found = f"{'workbench' if note else layout.name}, {len(tensors)} keys{about_ema}"
    return Checkpoint(path.name, ours, layout, found, config, model)


def load_into(model: VisionModel, checkpoint: Checkpoint) -> None:
    """Make the checkpoint's tensors the model's parameters and buffers; those with a fraction in float32.

    Raises:
        ValueError: they do not fit; names the first that differ, with the shapes that are expected and given.
    """
    differences = _differences(model.state_dict(), checkpoint.tensors)
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"{checkpoint.file} does not fit {model.name}: {'; '.join(differences[:3])}{more}.")
    whole = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    tensors = {name: t if name in whole else t.float() for name, t in checkpoint.tensors.items()}
    model.load_state_dict({name: t.contiguous() for name, t in tensors.items()}, assign=True)


def save(model: VisionModel, path: str | os.PathLike[str]) -> None:
    """Write a model's weights and settings as .safetensors, to be read again by `load_model(name, weights=path)`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, {NOTE: json.dumps({"model": model.name, "config": model.config})})


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of a state dict: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(
            f"There is no weights file {str(path)!r}: give 'random', 'trained' or a {', '.join(SUFFIXES)} path."
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Weights are read from {', '.join(SUFFIXES)} files; got {path.name}.")
    _check_bytes(path.name, path.stat().st_size)


def _check_bytes(file: str, count: int) -> None:
    if count > LARGEST_BYTES:
        raise ValueError(
            f"{file} holds {count / 1e9:.1f} GB, and checkpoints of over {LARGEST_BYTES / 1e9:.0f} GB are refused."
        )


def _read_safetensors(path: Path) -> tuple[Tensors, tuple[str, dict[str, Any]]]:
    """The tensors, and the model's name and settings that a file of ours notes besides them."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            _check_count(path.name, len(names))
            return {name: file.get_tensor(name) for name in names}, _note(file.metadata() or {}, path.name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is not a .safetensors checkpoint: {error}.") from None


def _note(metadata: Mapping[str, str], file: str) -> tuple[str, dict[str, Any]]:
    if NOTE not in metadata:
        return "", {}
    try:
        note = json.loads(metadata[NOTE])
        model, config = str(note.get("model", "")), dict(note["config"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} has a damaged note {NOTE!r} of its settings: save the model again.") from None
    # What the shapes tell is not taken from the note, so that a note cannot ask for a model larger than the file.
    return model, {name: value for name, value in config.items() if name not in SHAPES}


def _read_pickle(path: Path) -> Any:
    _check_bytes(path.name, _unpacked_bytes(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the unpickler raise almost anything
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needs is None:
            raise ValueError(DAMAGED.format(path.name)) from None
        raise ValueError(
            f"{path.name} can only be opened by running code from the file (it asks for {needs[1]}), which is refused: "
            "where you trust the file, convert it once with `weights = torch.load(path, weights_only=False)['model']` "
            "and `safetensors.torch.save_file(weights, 'weights.safetensors')`, and load the .safetensors file."
        ) from None


def _unpacked_bytes(path: Path) -> int:
    """What the archive inside a .pth file unpacks to; 0 for the older kind, which has none."""
    if not zipfile.is_zipfile(path):
        return 0
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except Exception:  # as above: damaged on purpose, it can raise almost anything
        raise ValueError(DAMAGED.format(path.name)) from None


def _unwrap(content: Any, ema: bool, file: str) -> tuple[Mapping[Any, Any], str]:
    """The state dict inside a file's content, and what to say about EMA weights."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a dictionary of weights.")
    own, average = (
        [content[key] for key in keys if isinstance(content.get(key), Mapping)] for keys in zip(*WRAPPERS, strict=True)
    )
    if ema and not average:
        names = " or ".join(key for _, key in WRAPPERS)
        raise ValueError(f"{file} has no EMA weights (no entry {names}): load it without ema=True.")
    if average and (ema or not own):
        return average[0], ", EMA weights"
    if own:
        return own[0], ", EMA weights also in the file" if average else ""
    return content, ""


def _tensors(state: Mapping[Any, Any], file: str) -> Tensors:
    """The state dict, checked to be names and ordinary tensors, without the prefix of parallel training."""
    _check_count(file, len(state))
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        wrappers = ", ".join(key for keys in WRAPPERS for key in keys)
        entries = f"its entries are {_first(state)}" if state else "it is empty"
        raise ValueError(f"{file} holds no weights, neither bare nor under {wrappers}: {entries}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise ValueError(f"{file} is not a state dict: its entry {_first([name])} is not an ordinary tensor.")
    _check_bytes(file, sum(4 * value.numel() for value in state.values()))  # a strided view can claim more than a file
    parallel = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if parallel else name: value for name, value in state.items()}


def _check_count(file: str, count: int) -> None:
    if count > MOST_TENSORS:
        raise ValueError(f"{file} holds {count} entries, and checkpoints of over {MOST_TENSORS} are refused.")


def _differences(expected: Mapping[str, torch.Tensor], given: Tensors) -> list[str]:
    """What keeps the given tensors from being the expected ones, in words."""
    found = []
    for name, tensor in expected.items():
        if name not in given:
            found.append(f"{name} {tuple(tensor.shape)} is missing")
        elif given[name].shape != tensor.shape:
            found.append(f"{name} is {tuple(given[name].shape)} where {tuple(tensor.shape)} is expected")
        elif tensor.is_floating_point() and not given[name].is_floating_point():
            found.append(f"{name} holds {given[name].dtype} where numbers with a fraction are expected")
    return found + [f"{_first([name])} is not part of the model" for name in given if name not in expected]


def _first(names: Any) -> str:
    """The first three names, shortened: what a file calls its entries can be anything."""
    return ", ".join(str(name)[:80] for name in list(names)[:3])
