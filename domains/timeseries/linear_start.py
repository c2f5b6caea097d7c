"""The forecast head's linear map before training: the ridge regression of the training windows, solved in closed form."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.domains.timeseries.baselines import RIDGE_WORK, chunks
from longseq.domains.timeseries.series import Scale
from longseq.domains.timeseries.windows import ForecastRows
from longseq.embeddings_timeseries import ForecastHead, SeriesEmbedding


def start_linear_skip(
    head: ForecastHead, embedding: SeriesEmbedding, rows: ForecastRows, scale: Scale, penalty: float = 1.0
) -> bool:
    """Sets `head.skip` to the ridge solution, so that the network learns what no linear map of the window can say.

    The map is fitted where the head uses it, on windows as the embedding normalises them, and for what training minimises,
    the squared error on standardised values: with s the window's scale over the channel's, it minimises
    `|s (y - W x - b)|^2 + penalty |W|^2` over all channels and series at once. The same on every
    process.

    Args:
        head: with `linear_skip`; one without is left alone.
        embedding: of the same model.
        rows: training windows.
        scale: of the training part.
        penalty: on the squared weights.

    Returns:
        Whether the map was set.

    Cost: O(n C L (L + F)) once, on every so manyth window where that would be more than some 10^11 multiplications.
    """
    if head.skip is None or not len(rows):
        return False
    work = len(rows) * rows.series.n_targets * rows.lookback * (rows.lookback + rows.horizon)
    size = rows.lookback + 1
    xx = torch.zeros(size, size, dtype=torch.float64)
    xy = torch.zeros(size, rows.horizon, dtype=torch.float64)
    with torch.no_grad():
        for x_NL, y_NF in _normalized(embedding, rows, scale, stride=max(1, math.ceil(work / RIDGE_WORK))):
            xx += (x_NL.T @ x_NL).double()
            xy += (x_NL.T @ y_NF).double()
    # The constant is not a slope: it goes unpunished, but for what keeps the system solvable.
    weights = torch.full((size,), penalty, dtype=torch.float64)
    weights[-1] = 1e-6
    solution = torch.linalg.solve(xx + torch.diag(weights), xy).float()
    with torch.no_grad():
        head.skip.weight.copy_(solution[:-1].T)
        head.skip.bias.copy_(solution[-1])
    return True


def _normalized(embedding: SeriesEmbedding, rows: ForecastRows, scale: Scale, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Weighted inputs `(n, L + 1)`, the constant last, and targets `(n, F)` of channels whose future was observed in full."""
    n_targets = rows.series.n_targets
    for which, past, future in chunks(rows, stride):
        # Channels that are only read count as not observed: each channel is normalised by itself.
        window_BLC = F.pad(torch.from_numpy(past), (0, embedding.n_channels - n_targets), value=torch.nan)
        shift_B1C, scale_B1C = embedding.normalizer.statistics(window_BLC)
        x_BLC = embedding.normalizer(window_BLC, shift_B1C, scale_B1C)[..., :n_targets]
        y_BFC = (torch.from_numpy(future) - shift_B1C[..., :n_targets]) / scale_B1C[..., :n_targets]
        std_BC = torch.from_numpy(scale.std_SC[which][:, :n_targets]).to(scale_B1C)
        weight_B1C = scale_B1C[..., :n_targets] / std_BC.unsqueeze(1)
        columns = (torch.cat([x_BLC, torch.ones_like(weight_B1C)], 1) * weight_B1C, y_BFC * weight_B1C)
        x_NL, y_NF = (v.transpose(1, 2).flatten(0, 1) for v in columns)
        complete_N = ~torch.isnan(y_NF).any(1)
        yield x_NL[complete_N], y_NF[complete_N]
