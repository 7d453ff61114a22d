"""Few-shot evaluation as a plain loop: one task, one image, one forward pass at a time."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mamltheory.fewshot.augment import draw_augmentation
from mamltheory.fewshot.episodes import sample_episode
from mamltheory.rng import generator
from tests.reference.fewshot_augment import augment_in_reals


def accuracies(network, split, mean, std, config, seed):
    """The accuracy on each task."""
    network.eval()
    return np.array([_task_accuracy(network, split, mean, std, config, seed, i) for i in range(config.tasks)])


def _task_accuracy(network, split, mean, std, config, seed, index):
    episode = sample_episode(split, config.ways, config.shots, config.queries, seed, index)
    draws = draw_augmentation(
        config.augmentation(),
        split.images.shape[1],
        config.ways * config.shots * config.copies,
        generator(seed, "support augmentation", index),
    )
    support, labels, drawn = [], [], 0
    for _copy in range(max(config.copies, 1)):
        for label in range(config.ways):
            for row in episode.support[label]:
                image = split.images[row]
                if config.copies:
                    parts = (
                        getattr(draws, name)[drawn].numpy()
                        for name in ("offsets", "mirrored", "factors", "order")
                    )
                    support.append(_feature(network, augment_in_reals(image, *parts, mean, std)))
                    drawn += 1
                else:
                    support.append(_feature(network, (image / 255 - mean) / std))
                labels.append(label)
    query = [_feature(network, (split.images[row] / 255 - mean) / std) for row in episode.query.ravel()]
    truth = [label for label in range(config.ways) for _ in range(config.queries)]
    parts = (np.array(part) for part in (support, labels, query))
    return np.mean(predictions(config.head, config.C, *parts) == truth)


def _feature(network, image):
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
        feature = network.features(x)[0].double().numpy()
    return feature / np.sqrt((feature**2).sum())


def predictions(head, C, support, labels, query):
    """The labels that scikit-learn's classifiers give, called as Appendix E and the released code call them."""
    if head == "nearest-centroid":
        centroids = np.array([support[labels == label].mean(0) for label in np.unique(labels)])
        return ((query[:, None] - centroids) ** 2).sum(2).argmin(1)
    if head == "logistic":
        return (
            LogisticRegression(C=C, random_state=0, solver="lbfgs", max_iter=1000)
            .fit(support, labels)
            .predict(query)
        )
    if head == "svc-scaled":
        scaler = StandardScaler().fit(support)
        support, query = scaler.transform(support), scaler.transform(query)
    machine = SVC(C=C, kernel="linear", gamma="auto", decision_function_shape="ovr")
    return machine.fit(support, labels).predict(query)
