"""Split-conformal calibration: how far intervals must move so that validation windows fall into them as often as they say."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ConformityScores(Metric):
    """How far the truth lies outside each central interval, in the unit of the window's scale, over all validation windows.

    Args:
        quantiles: of the forecast; odd in number and symmetric.
        channels: offsets per channel if more than 1, else one for all.

    Paper: conformalised quantile regression, https://arxiv.org/abs/1905.03222, equation 6. Windows of one series overlap and
    are not exchangeable, so the coverage is not guaranteed; the report shows what was reached on the test windows.
    """

    scores: list[Tensor]

    def __init__(self, quantiles: Sequence[float], channels: int) -> None:
        super().__init__()
        self.quantiles, self.channels = list(quantiles), channels
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    def update(self, forecast_BFCQ: Tensor, truth_BFC: Tensor, scale_B1C: Tensor) -> None:
        """Adds windows: quantiles and truth in original units, and the scale that the model normalised with."""
        half = len(self.quantiles) // 2
        low_BFCH, high_BFCH = forecast_BFCQ[..., :half], forecast_BFCQ[..., half + 1 :].flip(-1)
        truth_BFC1 = truth_BFC.unsqueeze(-1)
        outside_BFCH = torch.maximum(low_BFCH - truth_BFC1, truth_BFC1 - high_BFCH) / scale_B1C.unsqueeze(-1)
        if self.channels == 1:
            outside_BFCH = outside_BFCH.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        self.scores.append(outside_BFCH.float())

    def compute(self) -> Tensor:
        """Offsets (F, C or 1, Q) to add to the normalised quantiles; zero for the middle one."""
        scores_NFCH = np.sort(dim_zero_cat(self.scores).cpu().numpy(), axis=0)
        count_FCH = (~np.isnan(scores_NFCH)).sum(0)
        half = len(self.quantiles) // 2
        levels_H = np.array([self.quantiles[-1 - i] - self.quantiles[i] for i in range(half)])
        # The smallest score that ceil((n + 1) level) windows reach; with too few windows the largest of all.
        place_FCH = np.clip(np.ceil((count_FCH + 1) * levels_H - 1e-9) - 1, 0, np.maximum(count_FCH - 1, 0)).astype(np.int64)
        offset_FCH = np.nan_to_num(np.take_along_axis(scores_NFCH, place_FCH[None], axis=0)[0])
        zero_FC1 = np.zeros((*offset_FCH.shape[:2], 1), dtype=offset_FCH.dtype)
        return torch.from_numpy(np.concatenate([-offset_FCH, zero_FC1, offset_FCH[..., ::-1]], -1))
