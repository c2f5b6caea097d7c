"""GRU: the numbers of torch.nn.GRU, with padding and packing that it never reads."""

import pytest
import torch
from torch import nn

from longseq import create_backbone
from longseq.backbones.gru import GRU


def test_is_torch_gru() -> None:
    mixer, theirs = GRU(6).double(), nn.GRU(6, 6, batch_first=True).double()
    mixer.gru.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 17, 6, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), theirs(x)[0], atol=0.0, rtol=0.0)
    y, state = mixer.forward_chunk(x, mixer.init_state(2))
    torch.testing.assert_close(y, theirs(x)[0], atol=0.0, rtol=0.0)
    torch.testing.assert_close(state, theirs(x)[1][0], atol=0.0, rtol=0.0)


def test_padding_matches_packed_sequences() -> None:
    mixer = GRU(6).double()
    x = torch.randn(3, 12, 6, dtype=torch.float64)
    lengths = torch.tensor([12, 5, 1])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, _ = nn.utils.rnn.pad_packed_sequence(mixer.gru(packed)[0], batch_first=True)
    mask = torch.arange(12) < lengths[:, None]
    torch.testing.assert_close(mixer(x, mask), expected, atol=1e-12, rtol=0.0)
    # The same rows with their padding on the left.
    left = torch.stack([row.roll(12 - int(n), 0) for row, n in zip(x, lengths, strict=True)])
    shifted = torch.stack([row.roll(12 - int(n), 0) for row, n in zip(expected, lengths, strict=True)])
    torch.testing.assert_close(mixer(left, mask.flip(1)), shifted, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("with_mask", [False, True])
def test_packed_documents_are_as_if_alone(with_mask: bool) -> None:
    mixer = GRU(4).double()
    x = torch.randn(2, 15, 4, dtype=torch.float64)
    ids = torch.tensor([[0] * 4 + [1] * 11, [7] * 14 + [0]])
    mask = torch.ones(2, 15, dtype=torch.bool)
    if with_mask:
        mask[0, :2], mask[1, 12:] = False, False
    y = mixer(x, mask if with_mask else None, ids)
    for row, start, stop in ((0, 0, 4), (0, 4, 15), (1, 0, 14), (1, 14, 15)):
        kept = mask[row, start:stop]
        alone = mixer(x[row : row + 1, start:stop][:, kept])[0] if kept.any() else torch.zeros(0, 4, dtype=torch.float64)
        torch.testing.assert_close(y[row, start:stop][kept], alone, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_random_chunks_match_the_whole(seed: int) -> None:
    torch.manual_seed(seed)
    backbone = create_backbone("gru", d_model=6, n_layers=2).double().eval()
    x, mask = torch.randn(3, 40, 6, dtype=torch.float64), torch.ones(3, 40, dtype=torch.bool)
    mask[0, :11], mask[1, 22:], mask[2] = False, False, False
    whole = backbone(x, mask)
    state, outputs, start = backbone.init_state(3), [], 0
    while start < 40:
        stop = start + int(torch.randint(1, 9, ()))
        y, state = backbone.forward_chunk(x[:, start:stop], state, mask[:, start:stop])
        outputs.append(y)
        start = stop
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-6, rtol=1e-6)
    # Padding at the end leaves the state where the last real position put it.
    _, at_the_end = backbone.forward_chunk(x[:, :22], backbone.init_state(3), mask[:, :22])
    torch.testing.assert_close(state[0][1], at_the_end[0][1], atol=1e-6, rtol=1e-6)
    assert (state[0][2] == 0).all()


def test_state_is_fp32_for_bf16_and_differentiable() -> None:
    mixer = GRU(4)
    state = mixer.init_state(2).requires_grad_()
    mixer.forward_chunk(torch.randn(2, 3, 4), state)[1].sum().backward()
    assert state.grad is not None and state.grad.abs().sum() > 0
    half = mixer.bfloat16()
    y, after = half.forward_chunk(torch.randn(2, 3, 4).bfloat16(), half.init_state(2))
    assert y.dtype == torch.bfloat16 and after.dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
def test_export_has_one_body_for_any_length(bias: bool) -> None:
    backbone = create_backbone("gru", d_model=6, n_layers=1, bias=bias).eval()
    dims = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=4096)}
    example = (torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool))
    program = torch.export.export(backbone, example, dynamic_shapes=(dims, dims)).module()
    for batch, length in ((1, 3), (3, 50)):
        x, mask = torch.randn(batch, length, 6), torch.ones(batch, length, dtype=torch.bool)
        mask[0, :2] = False
        torch.testing.assert_close(program(x, mask), backbone(x, mask), atol=1e-5, rtol=1e-5)
