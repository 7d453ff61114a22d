"""The settings of the prediction on a user's own images."""

from dataclasses import dataclass
from pathlib import Path

from experiments.settings.last_layer import LastLayer


@dataclass(frozen=True)
class Predict(LastLayer):
    """Classes of your own images from a few labelled ones, by a trained network (one few-shot task)."""

    images: Path = Path("images")
    """Folder with support/CLASS/*.png (or another image), a folder for every class, and query/*.png without labels."""
    out: Path = Path("runs/predict")
    """Run folder: predictions.csv and the record."""
