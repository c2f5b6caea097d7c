"""Check a model folder: what quietly costs accuracy when a checkpoint is used or fine-tuned."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longseq.errors import LongseqError
from longseq.model import SequenceModel
from longseq.pipelines.machine import FAIL, OK, WARN, Finding
from longseq.pipelines.run_folder import CONFIG, read_config
from longseq.pretrained import Opened, list_pretrained, load_pretrained, open_pretrained

# Parameters whose small differences matter: decay rates, step sizes, skips.
SENSITIVE = re.compile(r"(A_log|A_b_log|\.D|D_b|dt_bias|dt_proj\.bias|log_dt|inv_dt|filter_fn\..+|\.freq)$")
PADDING = 5


def check_model(source: str) -> list[Finding]:
    """Findings about a run folder, a model folder, a checkpoint's folder or file.

    Args:
        source: as for `pretrained=`.
    """
    try:
        opened = open_pretrained(source)
        model, report = load_pretrained(source, format=opened.format)
    except (LongseqError, TypeError, ValueError) as error:
        return [Finding(FAIL, f"{source} cannot be loaded: {error}")]
    loaded = len(report.matched) + len(report.renamed)
    parameters = sum(p.numel() for p in model.parameters())
    findings = [Finding(OK, f"{source}: {opened.format}, {loaded} tensors, {parameters:,} parameters, backbone {_name(model)}")]
    if report.unexpected:
        first = ", ".join(list(report.unexpected)[:3])
        findings.append(Finding(WARN, f"{len(report.unexpected)} tensors of the file are not used, such as {first}"))
    findings += [Finding(OK, note) for note in report.notes]
    return [
        *findings,
        *check_dtypes(opened.weights),
        *check_padding(model),
        *check_length(source, opened, model),
        *check_batch_norm(model),
        *check_tokenizer(opened, model),
    ]


def _name(model: SequenceModel) -> str:
    return str(model.config["backbone"]["name"])


def check_dtypes(weights: dict[str, Tensor]) -> list[Finding]:
    """Whether the weights are masters in 32 bits, which training needs."""
    halves = [name for name, tensor in weights.items() if tensor.dtype in (torch.bfloat16, torch.float16)]
    if not halves:
        return [Finding(OK, "weights in float32")]
    sensitive = [name for name in halves if SENSITIVE.search(name)]
    text = f"{len(halves)} of {len(weights)} tensors are stored in {weights[halves[0]].dtype}".replace("torch.", "")
    text += f", among them {sensitive[0]}, whose rounding changes the dynamics" if sensitive else ""
    return [
        Finding(
            WARN,
            text,
            "They are widened on loading, and training keeps 32-bit masters; if a 32-bit file exists, start from it",
        )
    ]


def longest(model: SequenceModel) -> int | None:
    """Positions that the backbone and the embedding take; None for any number."""
    limits = (model.backbone.max_length, getattr(model.embedding, "max_length", None))
    return min((n for n in limits if n is not None), default=None)


@torch.no_grad()
def check_padding(model: SequenceModel) -> list[Finding]:
    """Whether padded positions change a row's answer: with the mask they must not."""
    vocabulary = model.config["embedding"].get("vocab_size")
    if not isinstance(vocabulary, int):
        return []
    length = max(1, min(24, (longest(model) or 64) - PADDING))
    generator = torch.Generator().manual_seed(0)
    # Not the first ids, which are special tokens where there are any.
    ids_BL = torch.randint(vocabulary // 2, vocabulary, (1, length), generator=generator)
    padded_BL = torch.cat([ids_BL, ids_BL.new_zeros(1, PADDING)], 1)
    mask_BL = torch.arange(padded_BL.shape[1])[None] < length
    try:
        alone, padded, unmasked = model(ids_BL), model(padded_BL, mask_BL), model(padded_BL)
    except (RuntimeError, ValueError) as error:
        return [Finding(WARN, f"the model does not answer {length} tokens: {error}")]
    per_position = alone.ndim == 3 and alone.shape[1] == length
    padded, unmasked = (out[:, :length] if per_position else out for out in (padded, unmasked))
    scale = float(alone.abs().max()) or 1.0
    change, without = (float((out - alone).abs().max()) / scale for out in (padded, unmasked))
    if change > 1e-3:
        return [
            Finding(WARN, f"padding changes the outputs by {change:.1%} even with its mask: rows of a batch depend on others")
        ]
    if without > 1e-3:
        how = "read" if per_position else "pooled"
        text = f"padding changes no output with its mask; without one pads are {how} like tokens ({without:.1%} of the output)"
        return [Finding(OK, text, "Always pass the mask, as the data modules do")]
    return [Finding(OK, "padding changes no output")]


def check_length(source: str, opened: Opened, model: SequenceModel) -> list[Finding]:
    """Whether the length that the weights are for is the one they were trained with."""
    limit = longest(model)
    if limit is None:
        return [Finding(OK, "any length")]
    folder = Path(source).expanduser()
    names = {folder.name, folder.resolve().name, opened.checkpoint.name}
    for info in list_pretrained():
        published = info.id.split("/")[1]
        if published in names and info.format == opened.format and info.length and info.length != limit:
            return [
                Finding(
                    WARN,
                    f"max_length is {limit:,}, but {info.id} was trained with {info.length:,}: its filters are other ones then",
                    "Take the config.json that was published with the weights",
                )
            ]
    if (folder / CONFIG).is_file():
        trained = (read_config(folder).get("backbone") or {}).get("max_length")
        if trained is not None and trained != limit:
            text = f"max_length is {limit:,} in the model's config.json, the run was configured with {trained:,}"
            return [Finding(WARN, text, "With another length the weights of a filter mean something else")]
    return [Finding(OK, f"sequences of up to {limit:,} positions")]


def check_batch_norm(model: SequenceModel) -> list[Finding]:
    """Whether there are running statistics, which fine-tuning on other data would have to renew."""
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return []
    name, first = norms[0]
    never = [n for n, m in norms if m.num_batches_tracked is not None and int(m.num_batches_tracked) == 0]
    if never:
        return [Finding(WARN, f"the batch norm {never[0]} has never seen a batch: its statistics are those of no data")]
    fixed = (
        f"{len(norms)} batch norms ({name} first, {first.num_features} channels) carry the statistics of their training data"
    )
    return [Finding(WARN, fixed, "Frozen they distort other data, and padding counts in them; train them, or use another norm")]


def check_tokenizer(opened: Opened, model: SequenceModel) -> list[Finding]:
    """Whether the ids that stand beside the weights, those in the config and the rows of the embedding agree."""
    beside = opened.checkpoint.vocabulary
    described: Any = (model.config.get("tokenizer") or {}).get("vocab")
    inside = described if isinstance(described, dict) else {}
    wrong = [token for token, i in inside.items() if token in beside and beside[token] != i]
    if wrong:
        token = wrong[0]
        text = f"tokenizer.json has {token}={beside[token]}, the model was trained with {token}={inside[token]}"
        return [Finding(FAIL, text, "Use the tokenizer that was saved with the model")]
    ids, rows = {**inside, **beside}, model.config["embedding"].get("vocab_size")
    if ids and isinstance(rows, int):
        largest = max(ids, key=lambda token: ids[token])
        if ids[largest] >= rows:
            text = f"the tokenizer's {largest} has the id {ids[largest]}, the embedding has {rows} rows"
            return [Finding(FAIL, text, "They belong to different models")]
        return [Finding(OK, f"{len(ids)} tokens, embedding of {rows} rows")]
    return []
