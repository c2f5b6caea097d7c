"""How a window becomes tokens: the embedding that the model's config names, and the head that reads its layout."""

from dataclasses import asdict, dataclass
from typing import Any

from longseq.backbone import Backbone
from longseq.embeddings_timeseries import INSTANCE
from longseq.errors import ConfigError

EMBEDDINGS = {
    "patch": "series_patch",
    "channel_mixing": "series_mixing",
    "variate": "series_variate",
    "point": "series_point",
}


@dataclass(frozen=True)
class SeriesTokenizer:
    """Windows of a fixed length to tokens; all of it runs inside the model.

    Attributes:
        kind: `patch` (each channel by itself), `channel_mixing` (patches of all channels), `variate` (a channel is a token)
            or `point` (a step is a token).
        lookback: steps that the model reads.
        patch: steps of a patch.
        stride: steps from one patch to the next.
        instance: `revin`, `revin_last`, `last` or `none`, see `longseq.embeddings_timeseries.SeriesNormalizer`.
        affine: a learned scale and shift per channel behind it.
    """

    kind: str
    lookback: int
    patch: int = 24
    stride: int = 12
    instance: str = "revin"
    affine: bool = False

    def __post_init__(self) -> None:
        if self.kind not in EMBEDDINGS:
            raise ConfigError(f"data.tokenizer must be one of {', '.join(EMBEDDINGS)}, found {self.kind!r}")
        if self.instance not in INSTANCE:
            raise ConfigError(f"data.instance must be one of {', '.join(INSTANCE)}, found {self.instance!r}")
        if self.lookback < 1:
            raise ConfigError(f"data.lookback must be at least 1 step, found {self.lookback}")
        if self.has_patches and not 1 <= self.stride <= self.patch <= self.lookback:
            raise ConfigError(
                f"need 1 <= data.patch_stride <= data.patch <= data.lookback, found {self.stride}, "
                f"{self.patch} and {self.lookback}"
            )

    @property
    def has_patches(self) -> bool:
        """Whether `patch` and `stride` matter."""
        return self.kind in ("patch", "channel_mixing")

    def n_tokens(self, horizon: int, n_channels: int, n_covariates: int) -> int:
        """Positions that the backbone sees."""
        if self.kind == "variate":
            return n_channels + n_covariates
        future = horizon if n_covariates else 0
        if self.kind == "point":
            return self.lookback + future
        return -(-(self.lookback - self.patch) // self.stride) + 1 + -(-future // self.patch)

    def embedding(self, **options: Any) -> dict[str, Any]:
        """Name and options of the model's embedding."""
        found: dict[str, Any] = {"name": EMBEDDINGS[self.kind], "lookback": self.lookback, "instance": self.instance}
        if self.has_patches:
            found |= {"patch": self.patch, "stride": self.stride}
        if self.affine:
            found["affine"] = True
        return {**found, **options}

    def layout(self, backbone: Backbone) -> str:
        """How the forecast head finds its channels among the tokens."""
        if self.kind == "point":
            return "last" if backbone.causal else "mean"
        return {"patch": "channels", "channel_mixing": "mixed", "variate": "variate"}[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """For the model's config."""
        return {"type": "series", **asdict(self)}
