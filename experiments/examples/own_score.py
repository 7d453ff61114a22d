"""A score of your own: the norm of the gradient at initialisation. Copy this file, change it, and search with it:

python -m experiments search --preset glyph-smoke --parameters 8000:10000 --score experiments.examples.own_score:score

That ranks 16 random cells in ten CPU seconds; without ``--parameters`` Algorithm 1 scores every operator, in minutes.
In Python: ``mamltheory.nas.search("glyphs", score=score)``. A plain function is enough where small numbers are good.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mamltheory import Task
from mamltheory.nas import OwnScore


def gradient_norm(network: nn.Module, tasks: Sequence[Task]) -> Tensor:
    """The norm of the gradient of the cross-entropy on all images of the tasks, by all weights.

    Args:
        network: A network with new weights, of which each call gets its own. It has GroupNorm and a classifier for the
            classes of a task: its parameters are not as many as those of the network that is trained, which
            ``--parameters`` limits and ``search.json`` tells.
        tasks: Few-shot tasks: images n×3×h×w, labels as one-hot rows.

    Returns:
        One number.
    """
    images = torch.cat([each for task in tasks for each in (task.query_x, task.support_x)])
    labels = torch.cat([each for task in tasks for each in (task.query_y, task.support_y)])
    loss = nn.functional.cross_entropy(network(images), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return torch.stack([each.square().sum() for each in gradients]).sum().sqrt()


score = OwnScore(gradient_norm, largest_is_best=True)
