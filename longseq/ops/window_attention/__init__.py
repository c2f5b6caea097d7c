"""Sliding-window attention with global tokens: each position looks at its neighbours, a few at everything."""

from typing import Any

import torch
from torch import Tensor

from longseq.ops.dispatch import Operator
from longseq.ops.window_attention.chunked import window_attention_chunked
from longseq.ops.window_attention.reference import window_attention_reference

__all__ = ["window_attention"]


def _shortcut(q_BLHP: Tensor, *_: Tensor, **__: Any) -> str | None:
    # A single query has one row of scores: the dense form is then the short one.
    return "reference" if q_BLHP.shape[1] == 1 else None


_operator = Operator(
    "window_attention", reference=window_attention_reference, chunked=window_attention_chunked, shortcut=_shortcut
)


def window_attention(
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    *,
    window: int,
    causal: bool = False,
    dilation: int = 1,
    global_mask_BL: Tensor | None = None,
    q_global_BLHP: Tensor | None = None,
    k_global_BLHP: Tensor | None = None,
    v_global_BLHP: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    scale: float | None = None,
    max_global: int | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Softmax attention of each position over a window of its neighbours and over a few global tokens.

    Position i sees i - window*dilation ... i + window*dilation in steps of `dilation` (up to i when causal), and every
    global token; a global token sees every position, through projections of its own. A global key is counted once: it
    leaves the local window and returns through its global column, with the *local* key and value. `window` is
    one-sided, so a published `attention_window` of 512 is `window=256` here (513 keys with the token itself).
    Documents, padding and causality bound the global tokens too.

    Args:
        q_BLHP: queries (B, L, H, P).
        k_BLHP: keys (B, M, H, P) with M >= L; the queries stand at the last L of the M positions, so that a state of
            earlier keys goes in front. M = L otherwise. L may be 1 or more.
        v_BLHP: values, of the keys' shape.
        window: how many (dilated) neighbours on each side, 0 or more.
        causal: no position sees a later one.
        dilation: distance between neighbours in the window, 1 or more.
        global_mask_BL: bool (B, L), True = global token. Needs M = L.
        q_global_BLHP: queries of the global rows, (B, L, H, P); the three global projections come together, and
            without them the global rows use `q`, `k` and `v`.
        k_global_BLHP: keys the global rows look at, (B, L, H, P).
        v_global_BLHP: values the global rows gather, (B, L, H, P).
        mask_BL: bool (B, M), True = real. Rows at padded positions are 0, and what stands there (NaN too) is not read.
        segment_ids_BL: integers (B, M); positions with different ids do not see each other.
        scale: factor on q.k; 1/sqrt(P) by default.
        max_global: at most this many global tokens in a row. Without it they are counted, which makes a GPU wait and
            cannot be traced by torch.export.
        implementation: "auto", "reference" (dense, any size that fits), "chunked" (plain PyTorch), "triton" (GPU). "auto"
            takes Triton for 16-bit and fp32 tensors on a GPU where it is installed, and the dense form for one query.

    Returns:
        y (B, L, H, P) in the dtype of `v`; the softmax runs in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, window, dilation or implementation that do not fit together.
        TypeError: masks that are not bool, segment ids that are not integers, q, k, v of different dtypes.

    Cost: O(L (window + G) P) time and O(L (window + G)) memory a head, for G global tokens.

    Paper: Longformer, https://arxiv.org/abs/2004.05150, section 3.1 and figure 2. The authors' code has the dilated and
    the causal form in a separate TVM kernel; here they are the same function.
    """
    named = {"q_BLHP": q_BLHP, "k_BLHP": k_BLHP, "v_BLHP": v_BLHP}
    given = (q_global_BLHP, k_global_BLHP, v_global_BLHP)
    _check_projections(named)
    _check_window(window, dilation, max_global)
    _check_masks(k_BLHP, mask_BL, segment_ids_BL)
    _check_global(q_BLHP, k_BLHP, global_mask_BL, given, max_global)
    return _operator(
        implementation,
        q_BLHP,
        k_BLHP,
        v_BLHP,
        window=window,
        causal=causal,
        dilation=dilation,
        global_mask_BL=global_mask_BL,
        q_global_BLHP=q_BLHP if q_global_BLHP is None else q_global_BLHP,
        k_global_BLHP=k_BLHP if k_global_BLHP is None else k_global_BLHP,
        v_global_BLHP=v_BLHP if v_global_BLHP is None else v_global_BLHP,
        mask_BL=mask_BL,
        segment_ids_BL=segment_ids_BL,
        scale=q_BLHP.shape[-1] ** -0.5 if scale is None else scale,
        max_global=max_global,
    )


def _check_projections(named: dict[str, Tensor]) -> None:
    q_BLHP, k_BLHP, v_BLHP = named.values()
    for name, x in named.items():
        if x.dim() != 4:
            raise ValueError(f"{name}: expected (batch, length, heads, width), found shape {tuple(x.shape)}")
        if not x.is_floating_point() or x.dtype != q_BLHP.dtype:
            raise TypeError(f"{name}: expected the floating dtype of q_BLHP ({q_BLHP.dtype}), found {x.dtype}")
    if k_BLHP.shape != v_BLHP.shape or k_BLHP.shape[0] != q_BLHP.shape[0] or k_BLHP.shape[2:] != q_BLHP.shape[2:]:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items())
        raise ValueError(f"queries, keys and values must agree in batch, heads and width, found {shapes}")
    if q_BLHP.shape[1] < 1 or k_BLHP.shape[1] < q_BLHP.shape[1]:
        lengths = f"{q_BLHP.shape[1]} queries and {k_BLHP.shape[1]} keys"
        raise ValueError(f"expected at least one query and a key for each, found {lengths}")


def _check_window(window: int, dilation: int, max_global: int | None) -> None:
    if window < 0:
        raise ValueError(f"window={window}: expected the number of neighbours on one side, 0 or more")
    if dilation < 1:
        raise ValueError(f"dilation={dilation}: expected 1 (neighbours without gaps) or more")
    if max_global is not None and max_global < 0:
        raise ValueError(f"max_global={max_global}: expected 0 or more global tokens")


def _check_masks(k_BLHP: Tensor, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> None:
    for name, x in (("mask_BL", mask_BL), ("segment_ids_BL", segment_ids_BL)):
        if x is not None and x.shape != k_BLHP.shape[:2]:
            raise ValueError(f"{name}: expected shape {tuple(k_BLHP.shape[:2])} (that of the keys), found {tuple(x.shape)}")
    if mask_BL is not None and mask_BL.dtype != torch.bool:
        raise TypeError(f"mask_BL: expected bool (True = real), found {mask_BL.dtype}; use mask.bool()")
    if segment_ids_BL is not None and (segment_ids_BL.is_floating_point() or segment_ids_BL.dtype == torch.bool):
        raise TypeError(f"segment_ids_BL: expected integers, found {segment_ids_BL.dtype}")


def _check_global(
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    global_mask_BL: Tensor | None,
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    max_global: int | None,
) -> None:
    projections = [x for x in given if x is not None]
    if global_mask_BL is None:
        if projections:
            raise ValueError("global projections were given without global_mask_BL: say which tokens are global")
        return
    if len(projections) not in (0, 3):
        raise ValueError("q_global_BLHP, k_global_BLHP and v_global_BLHP come together: give all three or none")
    if global_mask_BL.dtype != torch.bool:
        raise TypeError(f"global_mask_BL: expected bool (True = global), found {global_mask_BL.dtype}")
    if k_BLHP.shape[1] != q_BLHP.shape[1] or global_mask_BL.shape != q_BLHP.shape[:2]:
        raise ValueError(
            f"global_mask_BL: expected as many keys as queries and shape {tuple(q_BLHP.shape[:2])}, found "
            f"{k_BLHP.shape[1]} keys and shape {tuple(global_mask_BL.shape)}"
        )
    for x in projections:
        if x.shape != q_BLHP.shape or x.dtype != q_BLHP.dtype:
            raise ValueError(
                f"global projections: expected {tuple(q_BLHP.shape)} in {q_BLHP.dtype}, found {tuple(x.shape)} in {x.dtype}"
            )
    # Reading the mask makes a GPU wait, and a traced graph cannot read it at all: the check is made where it is free.
    if max_global is not None and global_mask_BL.device.type == "cpu" and not torch.compiler.is_compiling():
        most = int(global_mask_BL.sum(dim=1).max())
        if most > max_global:
            raise ValueError(f"max_global={max_global}: a row of global_mask_BL has {most} global tokens")
