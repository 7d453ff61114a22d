"""Few-shot image classification: data, episodes, RFS pre-training (Section 6, Appendix E) and evaluation.

Data
    load_data, ImageData, ImageSplit    images by name or folder, in three sets of classes
    tasks_from                          tasks of images, for the kernels and loops of the theory

Networks
    train, TrainConfig                  RFS pre-training on the training classes, and its recipe
    TrainedNetwork, Inputs              a trained network: genotype, classes, predict, save; the images it expects
    load                                the trained network of a run folder or a file
    evaluate, Evaluation                accuracy on tasks of unseen classes, with its interval
    EvaluationConfig, Predictions       the procedure, and what ``predict`` returns
"""

from typing import TYPE_CHECKING

from mamltheory.lazy import lazy_names

if TYPE_CHECKING:
    from mamltheory.fewshot.datasets import load_data
    from mamltheory.fewshot.evaluation import Evaluation, EvaluationConfig, Predictions
    from mamltheory.fewshot.images import ImageData, ImageSplit
    from mamltheory.fewshot.sampling import tasks_from
    from mamltheory.fewshot.trained import TrainedNetwork, evaluate, load, train
    from mamltheory.fewshot.training import TrainConfig
    from mamltheory.fewshot.training_state import Inputs

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "ImageData",
    "ImageSplit",
    "Inputs",
    "Predictions",
    "TrainConfig",
    "TrainedNetwork",
    "evaluate",
    "load",
    "load_data",
    "tasks_from",
    "train",
]

_PLACES = {
    "Evaluation": "evaluation",
    "EvaluationConfig": "evaluation",
    "ImageData": "images",
    "ImageSplit": "images",
    "Inputs": "training_state",
    "Predictions": "evaluation",
    "TrainConfig": "training",
    "TrainedNetwork": "trained",
    "evaluate": "trained",
    "load": "trained",
    "load_data": "datasets",
    "tasks_from": "sampling",
    "train": "trained",
}

__getattr__, __dir__ = lazy_names(__name__, _PLACES)
