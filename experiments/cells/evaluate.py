"""``evaluate``: the accuracy of a trained network on few-shot tasks of classes that it has never seen."""

from experiments.cells.common import FREE, data_of
from experiments.cells.train import settings_of_run, trained_network
from experiments.settings import Evaluate, require
from mamltheory.fewshot.evaluate import Evaluation, EvaluationConfig
from mamltheory.fewshot.evaluate import evaluate as evaluate_network
from mamltheory.fewshot.images import ImageData
from mamltheory.nas.network import Network
from mamltheory.runtime.device import choose_device, environment
from mamltheory.runtime.runlog import open_run


def run(settings: Evaluate) -> int:
    """Print the result line and leave it in the run folder; returns 0."""
    training, genotype = settings_of_run(settings.checkpoint)
    require(
        settings.data == training.data,
        f"the network was trained on {training.data}, and data is {settings.data}: name the same with --data",
    )
    data, device = data_of(training), choose_device(settings.device)
    network = trained_network(training, genotype, data)
    log = open_run(settings.out, "evaluate", settings, settings.seed, environment(device.device), FREE)
    result = evaluate(network.to(device.device), data, settings)
    interval = result.interval
    log.close(accuracy=interval.mean, half_width=interval.half_width, description=result.describe())
    print(result.describe())
    return 0


def evaluate(network: Network, data: ImageData, settings: Evaluate) -> Evaluation:
    """Accuracy on the tasks of the settings; the tasks depend on seed and data, not on the network."""
    split = {"val": data.val, "test": data.test}[settings.split]
    config = EvaluationConfig(
        ways=settings.ways,
        shots=settings.shots,
        queries=settings.queries,
        tasks=settings.tasks,
        copies=settings.augment,
        head=settings.head,
        C=settings.C,
        flip=data.mirrors,
    )
    return evaluate_network(network, split, data.mean, data.std, config, settings.seed, jobs=settings.jobs)
