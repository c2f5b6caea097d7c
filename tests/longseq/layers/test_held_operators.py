"""Operators that are kept from chunk to chunk: never older than the parameters, and safe to share."""

import copy
import pickle
import random
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from longseq.registry import create_mixer

D = 8


def stream(mixer: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    outputs, state = [], mixer.init_state(x.shape[0])  # type: ignore[operator]
    with torch.no_grad():
        for chunk in x.split(sizes, 1):
            y, state = mixer.forward_chunk(chunk, state)  # type: ignore[operator]
            outputs.append(y)
    return torch.cat(outputs, 1)


def scale_in_place(parameter: nn.Parameter) -> None:
    parameter.data.mul_(1.1)


def replace(parameter: nn.Parameter) -> None:
    # Twice: the second may get the memory of the first value.
    parameter.data = parameter.data * 1.1
    parameter.data = parameter.data * 1.1


def step(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.mul_(1.1)


@pytest.mark.parametrize("name", ["s4", "s4d"])
@pytest.mark.parametrize("change", [scale_in_place, replace, step])
def test_a_stream_follows_whatever_changed_the_parameters(name: str, change: Callable[[nn.Parameter], None]) -> None:
    mixer = create_mixer(name, D, d_state=4).eval()
    x = torch.randn(2, 20, D)
    stream(mixer, x, [5, 15])
    for parameter in mixer.parameters():
        change(parameter)
    torch.testing.assert_close(stream(mixer, x, [5, 15]), mixer(x).detach())


def test_copies_hold_nothing() -> None:
    mixer = create_mixer("s4d", D, d_state=4).eval()
    x = torch.randn(1, 20, D)
    size = len(pickle.dumps(mixer))
    stream(mixer, x, [5, 15])
    assert len(pickle.dumps(mixer)) == size
    copied = copy.deepcopy(mixer)
    for parameter in copied.parameters():
        parameter.data.mul_(1.1)
    torch.testing.assert_close(stream(copied, x, [5, 15]), copied(x).detach())


def test_threads_share_a_model() -> None:
    mixer = create_mixer("s4d", D, d_state=4).eval()
    x = torch.randn(1, 60, D)
    expected, problems = mixer(x).detach(), []

    def serve(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(15):
                cuts = sorted(choose.sample(range(1, 60), 4))
                sizes = [stop - start for start, stop in zip([0, *cuts], [*cuts, 60], strict=True)]
                torch.testing.assert_close(stream(mixer, x, sizes), expected)
        except Exception as error:
            problems.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not problems
