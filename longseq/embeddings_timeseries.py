"""Embeddings and heads of real-valued series: raw windows in, forecasts in the same units out, all in one graph.

A window is `(B, L, C)` in original units with NaN where nothing was observed. With K covariates it is `(B, L + F, C + K)`:
covariates stand behind the channels, and the last F rows hold their known future (what stands at the channels there is not
read). Normalisation is part of the embedding, and heads with `restore` undo it: a saved model needs no scaler beside it.

Shape letters: B batch, L lookback, F forecast steps, C channels, K covariates, N tokens, D width, Q quantiles, P patch.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.ops.tracing import is_exporting

INSTANCE = ("revin", "revin_last", "last", "none")
OUTPUTS = ("point", "quantiles", "student_t")
LAYOUTS = ("channels", "mixed", "variate", "last", "mean")


class SeriesNormalizer(nn.Module):
    """Shift and scale of each window: `z = (x - shift) / scale`, which `restore` undoes in the head.

    RevIN takes both from the window itself, so that a series that drifts away from the training set's level is seen at the
    level that was trained on; it is not the training set's scaler, which is one pair of numbers per channel for all windows.

    Args:
        mean: per channel in train.
        std: per channel in train.
        floor: per channel, the least scale, which keeps a constant window from dividing by zero.
        instance: `revin` (the window's mean and deviation), `revin_last` (its last value and deviation), `last` (its last
            value, and the channel's deviation) or `none` (the channel's mean and deviation).
        affine: a learned scale and shift per channel behind it.

    Paper: RevIN, https://openreview.net/forum?id=cGDAkQo1C0p, equations 1 to 3; `last` is NLinear's,
    https://arxiv.org/abs/2205.13504, section 4.
    """

    mean_C: Tensor
    std_C: Tensor
    floor_C: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        floor: Sequence[float],
        *,
        instance: str = "revin",
        affine: bool = False,
    ) -> None:
        super().__init__()
        if instance not in INSTANCE:
            raise ValueError(f"instance must be one of {', '.join(INSTANCE)}, found {instance!r}")
        self.instance = instance
        for name, values in (("mean_C", mean), ("std_C", std), ("floor_C", floor)):
            self.register_buffer(name, torch.tensor(list(values), dtype=torch.float32))
        self.gain_C = nn.Parameter(torch.ones(len(list(mean)))) if affine else None
        self.bias_C = nn.Parameter(torch.zeros(len(list(mean)))) if affine else None

    def statistics(self, x_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale `(B, 1, C)` of windows with NaN where nothing was observed."""
        seen_BLC = ~torch.isnan(x_BLC)
        filled_BLC = torch.where(seen_BLC, x_BLC, 0.0)
        count_B1C = seen_BLC.sum(1, keepdim=True)
        # The first value is taken away before averaging: squares of large values cancel in fp32.
        origin_B1C = filled_BLC[:, :1]
        centred_BLC = torch.where(seen_BLC, x_BLC - origin_B1C, 0.0)
        average_B1C = centred_BLC.sum(1, keepdim=True) / count_B1C.clamp(min=1)
        mean_B1C = torch.where(count_B1C > 0, average_B1C + origin_B1C, self.mean_C)
        if self.instance == "none":
            return self.mean_C.expand_as(mean_B1C), self.std_C.expand_as(mean_B1C)
        shift_B1C = mean_B1C
        if self.instance != "revin":
            place_L1 = torch.arange(x_BLC.shape[1], device=x_BLC.device).unsqueeze(-1)
            last_B1C = torch.where(seen_BLC, place_L1, -1).amax(1, keepdim=True).clamp(min=0)
            shift_B1C = torch.where(count_B1C > 0, filled_BLC.gather(1, last_B1C), self.mean_C)
        if self.instance == "last":
            return shift_B1C, self.std_C.expand_as(shift_B1C)
        deviation_BLC = torch.where(seen_BLC, centred_BLC - average_B1C, 0.0)
        variance_B1C = deviation_BLC.square().sum(1, keepdim=True) / count_B1C.clamp(min=1)
        scale_B1C = (variance_B1C + self.floor_C.square()).sqrt()
        return shift_B1C, torch.where(count_B1C > 0, scale_B1C, self.std_C)

    def forward(self, x_BLC: Tensor, shift_B1C: Tensor, scale_B1C: Tensor) -> Tensor:
        """Normalised values; zero, the window's own level, where nothing was observed."""
        missing_BLC = torch.isnan(x_BLC)
        z_BLC = torch.where(missing_BLC, 0.0, (x_BLC - shift_B1C) / scale_B1C)
        if self.gain_C is not None and self.bias_C is not None:
            # Zero already above: a missing value times zero would be in the gain's gradient, as NaN.
            z_BLC = torch.where(missing_BLC, 0.0, z_BLC * self.gain_C + self.bias_C)
        return z_BLC

    def location(self, z_BFC: Tensor) -> Tensor:
        """Takes the affine part away again from the first channels' values."""
        if self.gain_C is None or self.bias_C is None:
            return z_BFC
        gain_C, bias_C = self.gain_C[: z_BFC.shape[-1]], self.bias_C[: z_BFC.shape[-1]]
        return (z_BFC - bias_C) / gain_C.abs().clamp(min=1e-3).copysign(gain_C)


class SeriesEmbedding(nn.Module):
    """What the embeddings of series share: the window's layout, its normalisation and the tokens' positions.

    Args:
        d_model: width of the tokens.
        n_channels: C, the forecast channels first, then those that are only read.
        lookback: L, in steps.
        horizon: F, the rows of known future covariates; not read without covariates.
        n_covariates: K.
        mean: see `SeriesNormalizer`; 0 for every channel if not given.
        std: 1 for every channel if not given.
        floor: one thousandth of `std` if not given.
        covariate_mean: of each covariate in train; 0 if not given.
        covariate_std: 1 if not given.
        instance: see `SeriesNormalizer`.
        affine: see `SeriesNormalizer`.
        flags: tell the network which values are missing, and mask tokens in front of a series' beginning.
        dropout: on the tokens.
    """

    covariate_mean_K: Tensor
    covariate_std_K: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        n_channels: int,
        lookback: int,
        horizon: int = 0,
        n_covariates: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        floor: Sequence[float] | None = None,
        covariate_mean: Sequence[float] | None = None,
        covariate_std: Sequence[float] | None = None,
        instance: str = "revin",
        affine: bool = False,
        flags: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model, self.n_channels, self.lookback, self.horizon = d_model, n_channels, lookback, horizon
        self.n_covariates, self.flags = n_covariates, flags
        mean = [0.0] * n_channels if mean is None else mean
        std = [1.0] * n_channels if std is None else std
        floor = [1e-3 * value for value in std] if floor is None else floor
        self.normalizer = SeriesNormalizer(mean, std, floor, instance=instance, affine=affine)
        self.register_buffer(
            "covariate_mean_K", torch.tensor(list(covariate_mean or [0.0] * n_covariates), dtype=torch.float32)
        )
        self.register_buffer("covariate_std_K", torch.tensor(list(covariate_std or [1.0] * n_covariates), dtype=torch.float32))
        self.dropout = nn.Dropout(dropout)

    @property
    def n_steps(self) -> int:
        """Rows of a window, the known future among them."""
        return self.lookback + (self.horizon if self.n_covariates else 0)

    @property
    def features_per_channel(self) -> int:
        """Numbers that a channel has at a step: its value, and whether it is missing."""
        return 2 if self.flags else 1

    def values(self, inputs: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """The channels of the lookback `(B, L, C)`, NaN where nothing was observed."""
        expected = (self.n_steps, self.n_channels + self.n_covariates)
        if not is_exporting() and (inputs.ndim != 3 or inputs.shape[1:] != expected):
            raise ValueError(
                f"a window must be (batch, {expected[0]} steps, {self.n_channels} channels + {self.n_covariates} covariates), "
                f"found {tuple(inputs.shape)}"
            )
        x_BLC = inputs[:, : self.lookback, : self.n_channels].float()
        if mask_BL is not None:
            x_BLC = x_BLC.masked_fill(~mask_BL[:, : self.lookback].unsqueeze(-1), math.nan)
        return x_BLC

    def covariates(self, inputs: Tensor) -> Tensor:
        """The standardised covariates `(B, L + F, K)`; zero, their mean, where they are not known."""
        known_BTK = (inputs[:, :, self.n_channels :].float() - self.covariate_mean_K) / self.covariate_std_K
        return torch.where(torch.isnan(known_BTK), 0.0, known_BTK)

    def statistics(self, inputs: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shift and scale of the windows, `(B, 1, C)` each, in original units."""
        return self.normalizer.statistics(self.values(inputs, mask_BL))

    def normalized(self, inputs: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """The windows as the network sees them, `(B, L, C)`."""
        x_BLC = self.values(inputs, mask_BL)
        return self.normalizer(x_BLC, *self.normalizer.statistics(x_BLC))

    def channel_features(self, inputs: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Normalised values, with `flags` also whether missing, `(B, L, C, 1 or 2)`; and where any is seen `(B, L)`."""
        x_BLC = self.values(inputs, mask_BL)
        z_BLC = self.normalizer(x_BLC, *self.normalizer.statistics(x_BLC))
        missing_BLC = torch.isnan(x_BLC)
        parts = [z_BLC, missing_BLC.to(z_BLC.dtype)] if self.flags else [z_BLC]
        return torch.stack(parts, -1), ~missing_BLC.all(-1)

    def token_mask(self, seen_BN: Tensor, more: int = 0) -> Tensor | None:
        """Real tokens: from the first in which anything was observed; None if `flags` is off and all are.

        Args:
            seen_BN: tokens in which anything was observed.
            more: tokens behind these that are always real.
        """
        if not self.flags:
            return None
        real_BN = seen_BN.cumsum(1) > 0
        # A row in which nothing was observed keeps its last token: a network over no position at all has no output.
        last_N = torch.arange(seen_BN.shape[1], device=seen_BN.device) == seen_BN.shape[1] - 1
        return F.pad(real_BN | last_N, (0, more), value=True)


class SeriesPatchEmbedding(SeriesEmbedding):
    """Patches of each channel by itself, all channels through one network: `(B, L, C)` to `(B * C, N, D)`.

    Args:
        d_model: width of the tokens.
        patch: P, steps of a patch.
        stride: steps from one patch to the next.
        mix_channels: one token for the patches of all channels, `(B, N, D)`.
        **options: of `SeriesEmbedding`.

    Cost: O(B C N P D); the network then runs over B C sequences of N tokens.
    Paper: PatchTST, https://arxiv.org/abs/2211.14730, section 3.1. Padded on the left, not on the right, so that the last
    patch ends with the last observation.
    """

    mix_channels = False

    def __init__(self, d_model: int, *, patch: int, stride: int | None = None, **options: object) -> None:
        super().__init__(d_model, **options)  # type: ignore[arg-type]
        stride = patch if stride is None else stride
        if not 1 <= patch <= self.lookback or not 1 <= stride <= patch:
            raise ValueError(f"need 1 <= stride <= patch <= lookback={self.lookback}, found patch={patch}, stride={stride}")
        self.patch, self.stride = patch, stride
        self.n_past = -(-(self.lookback - patch) // stride) + 1
        self.n_future = -(-self.horizon // patch) if self.n_covariates else 0
        channels = self.n_channels if self.mix_channels else 1
        self.projection = nn.Linear(patch * (channels * self.features_per_channel + self.n_covariates), d_model)
        self.future = nn.Linear(patch * self.n_covariates, d_model) if self.n_future else None
        self.position_ND = nn.Parameter(torch.empty(self.n_past + self.n_future, d_model))
        nn.init.normal_(self.position_ND, std=0.02)

    @property
    def n_tokens(self) -> int:
        """N."""
        return self.n_past + self.n_future

    def patches(self, x_BTE: Tensor) -> Tensor:
        """Overlapping patches `(B, N, E, P)` of `(B, L, E)`, with zeros in front where L does not divide."""
        missing = (self.n_past - 1) * self.stride + self.patch - self.lookback
        return F.pad(x_BTE, (0, 0, missing, 0)).unfold(1, self.patch, self.stride)

    def forward(self, inputs: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens and their mask."""
        features_BLCE, seen_BL = self.channel_features(inputs, mask_BL)
        batch = features_BLCE.shape[0]
        # (B, G, L, E): G groups of E numbers at each step; all channels in one group, or each in its own.
        if self.mix_channels:
            grouped_BGLE = features_BLCE.flatten(2).unsqueeze(1)
        else:
            grouped_BGLE = features_BLCE.transpose(1, 2)
        groups = grouped_BGLE.shape[1]
        known_BTK = self.covariates(inputs) if self.n_covariates else None
        if known_BTK is not None:
            past_BGLK = known_BTK[:, None, : self.lookback].expand(-1, groups, -1, -1)
            grouped_BGLE = torch.cat([grouped_BGLE, past_BGLK], -1)
        x_BND = self.projection(self.patches(grouped_BGLE.flatten(0, 1)).flatten(2))
        if known_BTK is not None and self.future is not None:
            ahead_BFK = F.pad(known_BTK[:, self.lookback :], (0, 0, 0, self.n_future * self.patch - self.horizon))
            ahead_BND = self.future(ahead_BFK.unflatten(1, (self.n_future, self.patch)).flatten(2))
            x_BND = torch.cat([x_BND, ahead_BND.unsqueeze(1).expand(-1, groups, -1, -1).flatten(0, 1)], 1)
        real_BN = self.token_mask(self.patches(seen_BL.unsqueeze(-1).float()).amax((2, 3)) > 0, self.n_future)
        if real_BN is not None:
            real_BN = real_BN.unsqueeze(1).expand(batch, groups, -1).flatten(0, 1)
        return self.dropout(x_BND + self.position_ND), real_BN


class SeriesMixingEmbedding(SeriesPatchEmbedding):
    """Patches of all channels together: `(B, L, C)` to `(B, N, D)`; options as for `SeriesPatchEmbedding`."""

    mix_channels = True


class SeriesVariateEmbedding(SeriesEmbedding):
    """Each channel's whole window is one token: `(B, L, C)` to `(B, C + K, D)`, so that the network mixes channels.

    Covariates are tokens of their own, with their known future. They come first and the channels in reverse, so that those
    which are forecast see the others through a causal backbone too. Beyond that the order is that of the data and means
    nothing: the backbone should see both sides.

    Cost: O(B C L D).
    Paper: iTransformer, https://arxiv.org/abs/2310.06625, section 3.1; over state space models: S-Mamba,
    https://arxiv.org/abs/2403.11144.
    """

    def __init__(self, d_model: int, **options: object) -> None:
        super().__init__(d_model, **options)  # type: ignore[arg-type]
        self.projection = nn.Linear(self.lookback * self.features_per_channel, d_model)
        self.covariate = nn.Linear(self.n_steps, d_model) if self.n_covariates else None

    @property
    def n_tokens(self) -> int:
        """N."""
        return self.n_channels + self.n_covariates

    def forward(self, inputs: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens; no mask, since a channel without observations is still forecast."""
        features_BLCE, _ = self.channel_features(inputs, mask_BL)
        x_BND = self.projection(features_BLCE.permute(0, 2, 3, 1).flatten(2)).flip(1)
        if self.covariate is not None:
            x_BND = torch.cat([self.covariate(self.covariates(inputs).transpose(1, 2)), x_BND], 1)
        return self.dropout(x_BND), None


class SeriesPointEmbedding(SeriesEmbedding):
    """One token for each time step, all channels together: `(B, L, C)` to `(B, L, D)`, or L + F tokens with covariates.

    Cost: O(B L C D).
    """

    def __init__(self, d_model: int, **options: object) -> None:
        super().__init__(d_model, **options)  # type: ignore[arg-type]
        self.projection = nn.Linear(self.n_channels * self.features_per_channel + self.n_covariates, d_model)
        self.future = nn.Linear(self.n_covariates, d_model) if self.n_covariates and self.horizon else None

    @property
    def n_tokens(self) -> int:
        """N."""
        return self.n_steps

    def forward(self, inputs: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens and their mask."""
        features_BLCE, seen_BL = self.channel_features(inputs, mask_BL)
        past_BLE, more = features_BLCE.flatten(2), 0
        if self.n_covariates:
            past_BLE = torch.cat([past_BLE, self.covariates(inputs)[:, : self.lookback]], -1)
        x_BLD = self.projection(past_BLE)
        if self.future is not None:
            x_BLD = torch.cat([x_BLD, self.future(self.covariates(inputs)[:, self.lookback :])], 1)
            more = self.horizon
        return self.dropout(x_BLD), self.token_mask(seen_BL, more)


class ForecastHead(nn.Module):
    """All F steps at once, as Q quantiles of each channel in original units: `(B, F, C, Q)`.

    The last dimension holds the quantiles in rising order; the middle one is the point forecast. Quantiles are the middle
    plus sums of positive steps, so they never cross. With `student_t` the location, scale and degrees of freedom stand
    behind them. `linear_skip` adds one linear map from the normalised window, shared by all channels, so that the network
    only learns what a linear forecast leaves.

    Args:
        d_model: the backbone's width.
        horizon: F, in steps.
        n_channels: C, those that are forecast.
        n_tokens: N of the embedding.
        layout: how tokens belong to channels: `channels` (B C sequences of patches), `variate` (a token per channel),
            `mixed` (patches of all), `last` or `mean` (of the tokens).
        output: `point`, `quantiles` or `student_t`.
        quantiles: odd in number, symmetric about 0.5, rising.
        lookback: L, for `linear_skip`.
        linear_skip: see above.
        rank: width of the map to quantiles, and to all channels in the mixing layouts.
        dropout: on what the head reads.
        calibrated_channels: channels with offsets of their own; 1 shares them.

    Cost: O(B C N D F) for `channels`.
    """

    offset_FCQ: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        horizon: int,
        n_channels: int,
        n_tokens: int,
        layout: str,
        output: str = "quantiles",
        quantiles: Sequence[float] = (0.5,),
        lookback: int = 0,
        linear_skip: bool = False,
        rank: int = 64,
        dropout: float = 0.0,
        calibrated_channels: int = 1,
    ) -> None:
        super().__init__()
        check_quantiles(quantiles)
        for name, value, known in (("layout", layout, LAYOUTS), ("output", output, OUTPUTS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        self.horizon, self.n_channels, self.layout, self.output = horizon, n_channels, layout, output
        self.quantiles = list(quantiles)
        self.per_channel = layout in ("channels", "variate")
        width = d_model * n_tokens if layout in ("channels", "mixed") else d_model
        columns = 1 if self.per_channel else n_channels
        self.dropout = nn.Dropout(dropout)
        self.squeeze = nn.Identity() if self.per_channel else nn.Linear(width, rank)
        self.location = nn.Linear(width if self.per_channel else rank, horizon * columns)
        self.n_spread = {"point": 0, "quantiles": len(self.quantiles) - 1, "student_t": 2}[output]
        self.spread = None
        if self.n_spread:
            self.spread = nn.Sequential(
                nn.Linear(width if self.per_channel else rank, rank),
                nn.GELU(),
                nn.Linear(rank, horizon * columns * self.n_spread),
            )
        self.skip = nn.Linear(lookback, horizon) if linear_skip else None
        if self.skip is not None:
            # What is learned starts as a correction of nothing.
            nn.init.zeros_(self.skip.weight)
            nn.init.zeros_(self.location.weight)
            nn.init.zeros_(self.location.bias)
        self.register_buffer("offset_FCQ", torch.zeros(horizon, calibrated_channels, len(self.quantiles)))

    def gather(self, x_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """What the forecast is made of, `(B, C, E)` for layouts per channel and `(B, E)` for the others."""
        if self.layout == "channels":
            return x_BND.flatten(1).unflatten(0, (-1, self.n_channels))
        if self.layout == "variate":
            return x_BND[:, -self.n_channels :].flip(1)
        if self.layout == "mixed":
            return x_BND.flatten(1)
        if self.layout == "last":
            return x_BND[:, -1]
        if mask_BN is None:
            return x_BND.mean(1)
        return (x_BND * mask_BN.unsqueeze(-1)).sum(1) / mask_BN.sum(1, keepdim=True).clamp(min=1)

    def forward(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Normalised `(B, F, C, 1 + R)`: the location, and R raw numbers that the spread is made of."""
        features = self.squeeze(self.dropout(self.gather(x_BND, mask_BN)))
        parts = [self._arrange(self.location(features), 1)]
        if self.spread is not None:
            parts.append(self._arrange(self.spread(features), self.n_spread))
        return torch.cat(parts, -1)

    def _arrange(self, flat: Tensor, width: int) -> Tensor:
        if self.per_channel:
            return flat.unflatten(-1, (self.horizon, width)).transpose(1, 2)
        return flat.unflatten(-1, (self.horizon, self.n_channels, width))

    def restore(self, raw_BFCR: Tensor, embedding: SeriesEmbedding, inputs: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """The forecast in original units, `(B, F, C, Q)`, or `(B, F, C, Q + 3)` for `student_t`."""
        raw_BFCR = raw_BFCR.float()
        location_BFC, spread_BFCR = raw_BFCR[..., 0], raw_BFCR[..., 1:]
        if self.skip is not None:
            window_BLC = embedding.normalized(inputs, mask_BL)[..., : self.n_channels]
            location_BFC = location_BFC + self.skip(window_BLC.transpose(1, 2)).float().transpose(1, 2)
        shift_B1C, scale_B1C = (s[..., : self.n_channels] for s in embedding.statistics(inputs, mask_BL))
        location_BFC = embedding.normalizer.location(location_BFC)
        deltas_BFCQ, more = self._deltas(spread_BFCR)
        # Calibration belongs to the answer, not to what is trained.
        if not self.training:
            deltas_BFCQ = deltas_BFCQ + self.offset_FCQ
            deltas_BFCQ = in_order(deltas_BFCQ)
        scale_B1C1 = scale_B1C.unsqueeze(-1)
        quantiles_BFCQ = (location_BFC.unsqueeze(-1) + deltas_BFCQ) * scale_B1C1 + shift_B1C.unsqueeze(-1)
        if not more:
            return quantiles_BFCQ
        middle_BFC1 = (location_BFC * scale_B1C + shift_B1C).unsqueeze(-1)
        return torch.cat([quantiles_BFCQ, middle_BFC1, more[0] * scale_B1C1, more[1]], -1)

    def _deltas(self, raw_BFCR: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalised distances of the quantiles from the location; for `student_t` also scale and degrees of freedom."""
        if self.output == "student_t":
            scale_BFC1 = F.softplus(raw_BFCR[..., :1]) + 1e-4
            # Above three degrees of freedom, where the series for the quantiles is exact to 0.3 %.
            freedom_BFC1 = 3.0 + F.softplus(raw_BFCR[..., 1:])
            z_Q = torch.tensor([NormalDist().inv_cdf(q) for q in self.quantiles], device=raw_BFCR.device)
            return scale_BFC1 * student_t_quantile(z_Q, freedom_BFC1), [scale_BFC1, freedom_BFC1]
        half = len(self.quantiles) // 2
        if self.output == "point":
            return raw_BFCR.new_zeros(*raw_BFCR.shape[:-1], len(self.quantiles)), []
        steps_BFCR = F.softplus(raw_BFCR)
        below = -steps_BFCR[..., :half].cumsum(-1).flip(-1)
        above = steps_BFCR[..., half:].cumsum(-1)
        return torch.cat([below, torch.zeros_like(raw_BFCR[..., :1]), above], -1), []


def student_t_quantile(z_Q: Tensor, freedom: Tensor) -> Tensor:
    """Quantiles of Student's t from those of the normal distribution, by four terms of the Cornish-Fisher expansion.

    Args:
        z_Q: standard normal quantiles.
        freedom: degrees of freedom, at least 3, broadcast against `z_Q`.

    Paper: Abramowitz and Stegun, Handbook of Mathematical Functions, equation 26.7.5.
    """
    z2 = z_Q * z_Q
    terms = (
        z_Q * (z2 + 1) / 4,
        z_Q * (5 * z2**2 + 16 * z2 + 3) / 96,
        z_Q * (3 * z2**3 + 19 * z2**2 + 17 * z2 - 15) / 384,
        z_Q * (79 * z2**4 + 776 * z2**3 + 1482 * z2**2 - 1920 * z2 - 945) / 92160,
    )
    return z_Q + sum(term / freedom**k for k, term in enumerate(terms, start=1))


def in_order(deltas_BFCQ: Tensor) -> Tensor:
    """Quantiles' distances from the middle one that never fall towards the outside, however far calibration moved them."""
    found = list(deltas_BFCQ.unbind(-1))
    half = len(found) // 2
    for i in range(half + 1, len(found)):
        found[i] = torch.maximum(found[i], found[i - 1])
    for i in reversed(range(half)):
        found[i] = torch.minimum(found[i], found[i + 1])
    return torch.stack(found, -1)


def check_quantiles(quantiles: Sequence[float]) -> None:
    """Raises ValueError unless quantiles rise, are symmetric about 0.5 and lie between 0 and 1."""
    values = list(quantiles)
    symmetric = all(abs(a + b - 1) < 1e-6 for a, b in zip(values, reversed(values), strict=True))
    if (
        not values
        or len(values) % 2 == 0
        or not symmetric
        or values != sorted(set(values))
        or not 0 < values[0] <= values[-1] < 1
    ):
        raise ValueError(
            f"quantiles must rise between 0 and 1, be symmetric about 0.5 and hold it, such as [0.1, 0.5, 0.9]; found {values}"
        )


SERIES_EMBEDDINGS: dict[str, type[nn.Module]] = {
    "series_patch": SeriesPatchEmbedding,
    "series_mixing": SeriesMixingEmbedding,
    "series_variate": SeriesVariateEmbedding,
    "series_point": SeriesPointEmbedding,
}
SERIES_HEADS: dict[str, type[nn.Module]] = {"forecast": ForecastHead}
