"""Front ends for sound: a waveform `(B, T)` in, `(B, L, D)` and its mask out. Torch alone, so that they export with the model.

T counts samples, L positions. Every front end gives `ceil(T / stride)` positions, of which those that begin before a row's
last real sample are real, so that padding a row changes nothing but the number of masked positions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WaveformEmbedding(nn.Module):
    """Learned strided convolutions on raw samples; without strides, a linear map of each sample by itself.

    Only the linear map knows no sampling rate: with it, a model of continuous-time layers can be run at another rate by
    scaling their step sizes. Convolutions look back only: position i sees samples before `(i + 1) * stride`.

    Args:
        d_model: width out.
        strides: of each convolution; their product is the number of samples of one position. Empty for the linear map.
        kernel_sizes: of each convolution, at least its stride; None for twice the strides.

    Cost: O(T d_model^2 / stride^2) beyond the first convolution.

    Paper: the strided stem is that of wav2vec 2.0, https://arxiv.org/abs/2006.11477, section 2, with causal padding and
    LayerNorm in every layer; the linear map is S4's, https://arxiv.org/abs/2111.00396, section 4.
    """

    def __init__(self, d_model: int, *, strides: Sequence[int] = (4, 4), kernel_sizes: Sequence[int] | None = None) -> None:
        super().__init__()
        kernels = [2 * stride for stride in strides] if kernel_sizes is None else list(kernel_sizes)
        if len(kernels) != len(strides) or any(s < 1 or k < s for k, s in zip(kernels, strides, strict=False)):
            raise ValueError(
                f"kernel_sizes must hold one number per stride, each at least its stride; found {kernels} "
                f"for strides {list(strides)}"
            )
        self.strides, self.kernel_sizes = tuple(strides), tuple(kernels)
        self.stride = math.prod(strides)
        widths = [1] + [d_model] * len(strides)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(widths[i], d_model, kernel, stride=stride)
            for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in strides)
        self.projection = nn.Linear(d_model if strides else 1, d_model)
        # Samples that a position sees before its own first one, and behind its last one.
        self.lookback = sum((k - s) * math.prod(strides[:i]) for i, (k, s) in enumerate(zip(kernels, strides, strict=True)))
        self.lookahead = 0

    def output_length(self, n_samples: int) -> int:
        """Positions of a row of so many samples."""
        return positions(n_samples, self.stride)

    def forward(self, x_BT: Tensor, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(B, T)` or `(B, T, 1)` samples and their mask in; `(B, L, D)` and its mask out."""
        x_BLD = as_samples(x_BT, mask_BT).to(self.projection.weight.dtype).unsqueeze(-1)
        mask_BL = mask_BT
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            assert isinstance(convolution, nn.Conv1d)
            stride, kernel = convolution.stride[0], convolution.kernel_size[0]
            mask_BL = shorten_mask(mask_BL, stride)
            x_BDL = convolution(pad_to_stride(x_BLD.transpose(1, 2), stride, kernel - stride))
            x_BLD = F.gelu(norm(x_BDL.transpose(1, 2)))
            # Biases fill the padding, which the next convolution would read.
            x_BLD = x_BLD if mask_BL is None else x_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
        return self.projection(x_BLD), mask_BL


class LogMelEmbedding(nn.Module):
    """Logarithmic mel energies of overlapping windows, standardised and mapped to the model's width.

    `log(max(M |DFT(w x)|^2, floor))` with a Hann window w and triangular mel filters M (HTK's scale, peak 1). Positions
    stand `hop_s` apart, each in the middle of its window; beyond the row's ends stand zeros. Computed in fp32.

    Args:
        d_model: width out.
        sample_rate_hz: of the input.
        n_mels: filters.
        window_s: length of a window in seconds.
        hop_s: seconds from one position to the next.
        f_min: lowest frequency in Hz.
        f_max: highest frequency in Hz; None for half the sampling rate.
        floor: smallest energy.
        mean: of each feature over the training data; None for no standardisation.
        std: likewise.

    Cost: O(T window / hop) multiplications with the Fourier basis.
    """

    n_features: int
    mean: Tensor
    std: Tensor
    basis: Tensor
    filters: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        sample_rate_hz: int,
        n_mels: int = 64,
        window_s: float = 0.025,
        hop_s: float = 0.010,
        f_min: float = 20.0,
        f_max: float | None = None,
        floor: float = 1e-6,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.stride = max(1, round(hop_s * sample_rate_hz))
        self.window = max(self.stride, round(window_s * sample_rate_hz))
        # Samples that a position sees before its own first one, and behind its last one.
        self.lookback = (self.window - self.stride) // 2
        self.lookahead = self.window - self.stride - self.lookback
        self.floor = floor
        n_fft = 1 << (self.window - 1).bit_length()
        top = sample_rate_hz / 2 if f_max is None else f_max
        if not 0 <= f_min < top <= sample_rate_hz / 2:
            raise ValueError(
                f"f_min={f_min} and f_max={f_max} must be 0 <= f_min < f_max <= {sample_rate_hz / 2}, half the rate"
            )
        # They follow from the options: a checkpoint need not hold them.
        self.register_buffer("basis", fourier_basis(self.window, n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(n_fft, sample_rate_hz, n_mels, f_min, top), persistent=False)
        self.set_features(n_mels, mean, std)
        self.projection = nn.Linear(self.n_features, d_model)

    def set_features(self, n_features: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Says how many features a position has, and how they are standardised."""
        self.n_features = n_features
        for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            numbers = [default] * n_features if values is None else list(values)
            if len(numbers) != n_features:
                raise ValueError(f"{name} must hold {n_features} numbers, one per feature; found {len(numbers)}")
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32), persistent=False)

    def output_length(self, n_samples: int) -> int:
        """Positions of a row of so many samples."""
        return positions(n_samples, self.stride)

    def features(self, x_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Standardised features `(B, L, n_features)` in fp32."""
        with torch.autocast(x_BT.device.type, enabled=False):
            x_BT = as_samples(x_BT, mask_BT).float()
            x_BKL = F.conv1d(
                pad_to_stride(x_BT.unsqueeze(1), self.stride, self.lookback, self.lookahead),
                self.basis.float(),
                stride=self.stride,
            )
            real_BLK, imaginary_BLK = x_BKL.transpose(1, 2).contiguous().chunk(2, dim=2)
            energy_BLM = (real_BLK.square() + imaginary_BLK.square()) @ self.filters.float()
            return (self.transform(energy_BLM.clamp(min=self.floor).log()) - self.mean.float()) / self.std.float()

    def transform(self, log_energy_BLM: Tensor) -> Tensor:
        """What is done to the log energies before standardisation: nothing."""
        return log_energy_BLM

    def project(self, features_BLF: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features as `(B, L, D)`, and the mask of the positions."""
        return self.projection(features_BLF.to(self.projection.weight.dtype)), shorten_mask(mask_BT, self.stride)

    def forward(self, x_BT: Tensor, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(B, T)` or `(B, T, 1)` samples and their mask in; `(B, L, D)` and its mask out."""
        return self.project(self.features(x_BT, mask_BT), mask_BT)


class MFCCEmbedding(LogMelEmbedding):
    """Mel-frequency cepstral coefficients: the first terms of the log energies' cosine transform (type II, orthonormal).

    Args:
        d_model: width out.
        n_mfcc: coefficients, the 0th (loudness) included.
        sample_rate_hz: of the input.
        n_mels: filters, at least n_mfcc.
        mean: of each coefficient over the training data; None for no standardisation.
        std: likewise.
        **options: of `LogMelEmbedding`.
    """

    cosines: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        sample_rate_hz: int,
        n_mfcc: int = 20,
        n_mels: int = 40,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: float,
    ) -> None:
        if not 1 <= n_mfcc <= n_mels:
            raise ValueError(f"n_mfcc={n_mfcc} must lie between 1 and n_mels={n_mels}")
        super().__init__(d_model, sample_rate_hz=sample_rate_hz, n_mels=n_mels, **options)  # type: ignore[arg-type]
        self.register_buffer("cosines", cosine_transform(n_mels, n_mfcc), persistent=False)
        self.set_features(n_mfcc, mean, std)
        self.projection = nn.Linear(n_mfcc, d_model)

    def transform(self, log_energy_BLM: Tensor) -> Tensor:
        """The cepstrum."""
        return log_energy_BLM @ self.cosines.float()


AUDIO_EMBEDDINGS: dict[str, type[nn.Module]] = {
    "waveform": WaveformEmbedding,
    "logmel": LogMelEmbedding,
    "mfcc": MFCCEmbedding,
}


def as_samples(x_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Samples as (B, T), with zeros at masked places, whatever stood there."""
    if not x_BT.is_floating_point():
        raise TypeError(f"samples must be floating point between -1 and 1, found {x_BT.dtype}")
    if x_BT.ndim == 3 and x_BT.shape[2] == 1:
        x_BT = x_BT.squeeze(2)
    if x_BT.ndim != 2:
        raise ValueError(f"samples must be (batch, samples) of one channel, found {tuple(x_BT.shape)}")
    return x_BT if mask_BT is None else x_BT.masked_fill(~mask_BT, 0.0)


def positions(n_samples: int, stride: int) -> int:
    """`ceil(n_samples / stride)`, also of a symbolic length."""
    return (n_samples + stride - 1) // stride


def pad_to_stride(x_BCT: Tensor, stride: int, before: int, after: int = 0) -> Tensor:
    """Zeros around the last dimension, so that a kernel of `before + stride + after` gives an output for every position."""
    length = x_BCT.shape[-1]
    return F.pad(x_BCT, (before, after + positions(length, stride) * stride - length))


def shorten_mask(mask_BT: Tensor | None, stride: int) -> Tensor | None:
    """The mask of positions of `stride` samples each: real where any sample is."""
    if mask_BT is None or stride == 1:
        return mask_BT
    count = positions(mask_BT.shape[1], stride)
    return F.pad(mask_BT, (0, count * stride - mask_BT.shape[1])).unflatten(1, (count, stride)).any(2)


def fourier_basis(window: int, n_fft: int) -> Tensor:
    """Cosines and sines under a periodic Hann window, as convolution weights (2 (n_fft / 2 + 1), 1, window)."""
    place = torch.arange(window, dtype=torch.float64)
    angle = 2 * math.pi / n_fft * torch.arange(n_fft // 2 + 1, dtype=torch.float64).unsqueeze(1) * place
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * place / window)
    return (torch.cat([angle.cos(), angle.sin()]) * hann).float().unsqueeze(1)


def mel_filters(n_fft: int, sample_rate_hz: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangular filters (n_fft / 2 + 1, n_mels), evenly spaced on HTK's mel scale `2595 log10(1 + f / 700)`."""
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (f_min, f_max))
    corners = 700.0 * (10.0 ** (torch.linspace(low, high, n_mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    frequencies = torch.linspace(0, sample_rate_hz / 2, n_fft // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0.0).float()


def cosine_transform(n_in: int, n_out: int) -> Tensor:
    """The orthonormal cosine transform of type II, its first terms, as a matrix (n_in, n_out)."""
    place = torch.arange(n_in, dtype=torch.float64).unsqueeze(1) + 0.5
    matrix = torch.cos(math.pi / n_in * place * torch.arange(n_out, dtype=torch.float64)) * math.sqrt(2.0 / n_in)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix.float()
