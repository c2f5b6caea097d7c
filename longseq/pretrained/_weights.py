"""Tensors of safetensors files and of PyTorch pickles, without running what a pickle asks to run."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longseq.checkpoint import load_weights
from longseq.errors import CheckpointError

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# What the verb export writes beside plain weights.
GRAPHS = (".onnx", ".pt2")
# Containers that training scripts wrap a state dict in, and those of the weights' moving average.
_CONTAINERS = ("state_dict", "model", "model_state_dict", "module", "net", "network", "checkpoint")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
# A container may stand in another, such as a state dict in a checkpoint in a file.
_MOST_CONTAINERS = 3
_WRAPPERS = ("module.", "_orig_mod.")
# What torch's AveragedModel counts its updates in.
_COUNTER = "n_averaged"
# Hyperparameters that trainers save beside the weights: objects of these take no part, and stand-ins replace them.
_BYSTANDERS = re.compile(
    r"(omegaconf|pytorch_lightning|lightning|lightning_fabric|argparse|pathlib)\..+|typing\.Any|collections\.defaultdict"
    r"|numpy(\._?core)?\.(multiarray\.)?(scalar|_reconstruct|dtype|ndarray)|numpy\.dtypes\.\w+"
    r"|(builtins|__builtin__)\.(dict|list|tuple|set|int|float|str|bool|bytes|NoneType)"
)


class StandIn:
    """Takes the place of an object in a checkpoint's hyperparameters; it keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights: safetensors before pickles, whole before sharded.

    Raises:
        CheckpointError: if there are none, or several that could be meant.
    """
    for name in ("model.safetensors", "pytorch_model.bin", "weights.ckpt"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return _shards(index)
    for suffixes in ((".safetensors",), PICKLES):
        files = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.name != "training_args.bin")
        if len(files) == 1:
            return files
        if files:
            names = ", ".join(path.name for path in files[:5])
            raise CheckpointError(f"{folder} holds several checkpoints ({names}): give the path of one of them")
    _refuse_graph(folder, [path for path in sorted(folder.iterdir()) if path.suffix in GRAPHS])
    # A cross-validation, or the folder that all runs stand in.
    runs = sorted(path.parent.parent for path in folder.glob("*/model/config.json"))
    instead = f". It holds {len(runs)} runs: take one of them, such as {runs[0]}" if runs else ""
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors, pytorch_model.bin, weights.ckpt or one file of "
        f"{', '.join(PICKLES)}{instead}"
    )


def _refuse_graph(place: Path, graphs: Sequence[Path]) -> None:
    """Raises CheckpointError for an exported graph, which is for running alone."""
    if graphs:
        raise CheckpointError(
            f"{place} holds the graph {graphs[0].name}, which is for running: its weights cannot be trained. Start from the "
            "run that it was exported from, or export that run with format=safetensors"
        )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"weight_map names the files {names}")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error}): fetch it again") from None
    outside = [name for name in names if Path(name).name != name]
    absent = [name for name in names if name not in outside and not (index.parent / name).is_file()]
    if outside:
        raise CheckpointError(f"{index} points outside its folder ({outside[0]}), which is refused")
    if absent:
        raise CheckpointError(f"{index.parent} lacks {len(absent)} of {len(names)} shards, {absent[0]} first: fetch them")
    return [index.parent / name for name in names]


def read_weights(files: Sequence[Path], notes: list[str] | None = None) -> dict[str, Tensor]:
    """All tensors of one or more files.

    Args:
        files: with the weights.
        notes: gets what the user should know of weights that a file holds besides, or instead.

    Raises:
        CheckpointError: if a file is truncated, corrupted, wants to run code, or holds no tensors.
    """
    weights: dict[str, Tensor] = {}
    for path in files:
        _refuse_pointer(path)
        content = load_weights(path) if path.suffix == ".safetensors" else _read_pickle(path)
        weights |= _state_dict(content, path, [] if notes is None else notes)
    eighths = [name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.dtype.itemsize < 2]
    if eighths:
        kind = str(weights[eighths[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{files[0].parent}: {len(eighths)} tensors are quantised ({eighths[0]} is in {kind}), and what they are to be "
            "multiplied with stands elsewhere: take the checkpoint in 16 or 32 bits"
        )
    broken = [name for name, tensor in weights.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{files[0].parent}: {len(broken)} tensors hold NaN or infinity, {broken[0]} first: the file is damaged, or the "
            "training that wrote it had diverged"
        )
    return weights


def _refuse_pointer(path: Path) -> None:
    """Raises CheckpointError for what git leaves in a file's place where Git LFS is not installed."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise CheckpointError(
                    f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository, or fetch it "
                    "with `hf download`"
                )


def _read_pickle(path: Path) -> Any:
    # As timm's training script names its files.
    if path.suffix not in PICKLES and not path.name.endswith(".pth.tar"):
        _refuse_graph(path.parent, [path] if path.suffix in GRAPHS else [])
        raise CheckpointError(f"{path} is neither safetensors nor one of {', '.join(PICKLES)}")
    try:
        with torch.serialization.safe_globals(_stand_ins(path)), warnings.catch_warnings():
            # Of the pickle's protocol, to torch's developers.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        first = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{path} is truncated or corrupted ({path.stat().st_size} bytes): {first}") from None
    return content


def _stand_ins(path: Path) -> list[Any]:
    # Only the newer, zipped pickles can be asked beforehand; nothing is imported for the answer.
    if not zipfile.is_zipfile(path):
        return []
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        # Whatever is wrong with the file is said when it is read.
        return []
    return [(StandIn, name) for name in wanted if _BYSTANDERS.fullmatch(name)]


def _refusal(path: Path, error: str) -> CheckpointError:
    found = re.search(r"GLOBAL (\S+)", error) or re.search(r"Unsupported ((?:class|global|operand)[^.\n]*)", error)
    with path.open("rb") as file:
        is_pickle = file.read(4).startswith((b"\x80", b"PK\x03\x04"))
    if found is None or not is_pickle:
        return CheckpointError(f"{path} is truncated or corrupted ({path.stat().st_size} bytes): it is no PyTorch file")
    if found.group(1).startswith("operand"):
        return CheckpointError(
            f"{path} was refused: it is a pickle that torch.save did not write, and loading it could run code. If you trust "
            "its author, load it on a machine that you can spare, and save its tensors with safetensors.torch.save_file"
        )
    return CheckpointError(
        f"{path} was refused: beside tensors its pickle asks for {found.group(1)}, and loading it would run code. If you trust "
        "its author, open it on a machine that you can spare, save its tensors with safetensors.torch.save_file, and load those"
    )


def _unwrap(content: Any, path: Path, notes: list[str]) -> Any:
    """What the containers of training scripts hold; the weights as trained come before their moving average."""
    for _ in range(_MOST_CONTAINERS):
        if not isinstance(content, Mapping):
            break
        held = [name for name in (*_CONTAINERS, *_AVERAGES) if _may_hold_weights(content.get(name))]
        if not held:
            break
        averages = [name for name in held if name in _AVERAGES]
        if held[0] in _AVERAGES:
            notes.append(f"{path.name} holds a moving average of the weights alone ({held[0]}), which was taken")
        elif averages:
            notes.append(
                f"{path.name} also holds a moving average of the weights ({averages[0]}), which was not taken; to load it, "
                "save it as a file of its own"
            )
        content = content[held[0]]
    return content


def _may_hold_weights(value: Any) -> bool:
    inner = (*_CONTAINERS, *_AVERAGES)
    return isinstance(value, Mapping) and any(isinstance(x, Tensor) or name in inner for name, x in value.items())


def _state_dict(content: Any, path: Path, notes: list[str]) -> dict[str, Tensor]:
    content = _unwrap(content, path, notes)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dict of tensors (a state dict)")
    # Sparse tensors are weights too, but cannot be checked or copied as they are.
    tensors = {
        str(name): value if value.layout is torch.strided else value.to_dense()
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise CheckpointError(f"{path} holds no tensors; found {keys}")
    # Networks that were saved inside DistributedDataParallel, torch.compile or AveragedModel.
    tensors = {name: tensor for name, tensor in tensors.items() if name != _COUNTER or len(tensors) == 1}
    while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in tensors)), ""):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    # A trainer may compile the network inside its own module.
    return {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
