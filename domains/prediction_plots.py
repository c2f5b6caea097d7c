"""A report's sections from predictions.csv, whatever the domain: chosen by the columns that are there."""

from longseq.domains.classification_plots import class_scores, classification_sections, multilabel_sections
from longseq.domains.regression_plots import regression_sections
from longseq.domains.sections import RunFiles, Section


def prediction_sections(run: RunFiles) -> list[Section]:
    """What can be drawn from the predictions of the test rows, by the columns that are there."""
    frame = run.predictions
    if frame is None or frame.empty:
        return []
    columns = [str(name) for name in frame.columns]
    if "prediction" in columns and "label" in columns:
        scores = class_scores(frame)
        return classification_sections(scores) if scores is not None else []
    targets = [name.removeprefix("predicted_") for name in columns if name.startswith("predicted_")]
    targets = [name for name in targets if name in columns]
    if targets:
        return regression_sections(frame, targets)
    labels = [name[2:] for name in columns if name.startswith("p_") and name[2:] in columns]
    return multilabel_sections(frame, labels) if labels else []
