"""Named settings: the smoke test on embedded glyphs, and the paper's four experiments.

Sources: [6.1] optimisation set-up of Section 6.1; [E] the paragraphs of Appendix E; [code] a default of the
authors' released programs where the paper is silent.
"""

import math
from pathlib import Path

from experiments.settings import Convergence, Drift, Equivalence, Evaluate, Search, Theory, Train

MINI, TIERED = "data/mini-imagenet", "data/tiered-imagenet"


def _search(name: str, data: str, cells: int, **kernel: object) -> Search:
    # [code] 48 channels, 3 tasks of 5 ways, 1 shot and 1 query at 32 × 32 pixels, 3 repeats, summed outputs,
    # and the two best inputs per node at the end.
    paper = {"channels": 48, "image_size": 32, "tasks": 3, "repeats": 3, "outputs": "sum", "two_inputs": True}
    return Search(data=data, cells=cells, out=Path(f"runs/{name}/search"), **paper, **kernel)


def _train(name: str, data: str, cells: int, batch_size: int) -> Train:
    if data == MINI:
        # [6.1] 100 epochs from 0.02, decayed at 60 and 80; [E] dropout 0.2.
        schedule = {"epochs": 100, "learning_rate": 0.02, "milestones": (60, 80), "drop_path": 0.2}
    else:
        # [6.1] 60 epochs from 0.01, decayed at 30, 40 and 50; [E] dropout 0.1.
        schedule = {"epochs": 60, "learning_rate": 0.01, "milestones": (30, 40, 50), "drop_path": 0.1}
    folder = Path(f"runs/{name}")
    files = {"genotype": folder / "search/genotype.json", "out": folder / "train"}
    # [6.1] momentum 0.9 and weight decay 5e-4 are the settings' defaults; [code] 84 × 84 pixels, 48 channels.
    return Train(
        data=data, cells=cells, batch_size=batch_size, channels=48, image_size=84, **schedule, **files
    )


def _evaluate(name: str, data: str, shots: int, head: str, C: float) -> Evaluate:
    # [E] 5 augmented copies of the support; [code] 1000 tasks of 15 queries per class.
    folder = Path(f"runs/{name}")
    files = {"checkpoint": folder / "train", "out": folder / f"evaluate-{shots}-shot"}
    return Evaluate(data=data, shots=shots, head=head, C=C, augment=5, tasks=1000, queries=15, **files)


# [E] λτ and ridge: ∞ and 1e-3, except 1 and 1e-5 for 8 cells on miniImageNet.
# [6.1] the MAML kernel for 5 cells, the ANIL kernel for 8.
SEARCH = {
    "glyph-smoke": Search(
        channels=4, cells=3, stem_stride=2, ways=3, tasks=2, repeats=1, out=Path("runs/glyph-smoke/search")
    ),
    "mini-5": _search("mini-5", MINI, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
    "mini-8": _search("mini-8", MINI, 8, kernel="anil", inner_time=1.0, ridge=1e-5),
    "tiered-5": _search("tiered-5", TIERED, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
    "tiered-8": _search("tiered-8", TIERED, 8, kernel="anil", inner_time=math.inf, ridge=1e-3),
}

# [E] batch size 64 for 5 cells; 40 (miniImageNet) and 56 (tieredImageNet) for 8 cells.
TRAIN = {
    "glyph-smoke": Train(
        genotype=Path("runs/glyph-smoke/search/genotype.json"),
        channels=8,
        cells=3,
        stem_stride=2,
        epochs=3,
        milestones=(2,),
        drop_path=0.0,
        out=Path("runs/glyph-smoke/train"),
    ),
    "mini-5": _train("mini-5", MINI, 5, 64),
    "mini-8": _train("mini-8", MINI, 8, 40),
    "tiered-5": _train("tiered-5", TIERED, 5, 64),
    "tiered-8": _train("tiered-8", TIERED, 8, 56),
}

# [E] head and C of each of the eight numbers in Table 1.
EVALUATE = {
    "glyph-smoke": Evaluate(
        checkpoint=Path("runs/glyph-smoke/train"), tasks=50, augment=1, out=Path("runs/glyph-smoke/evaluate")
    ),
    "mini-5-1-shot": _evaluate("mini-5", MINI, 1, "svc", 0.2),
    "mini-5-5-shot": _evaluate("mini-5", MINI, 5, "logistic", 0.6),
    "mini-8-1-shot": _evaluate("mini-8", MINI, 1, "svc", 0.35),
    "mini-8-5-shot": _evaluate("mini-8", MINI, 5, "logistic", 0.4),
    "tiered-5-1-shot": _evaluate("tiered-5", TIERED, 1, "svc", 0.75),
    "tiered-5-5-shot": _evaluate("tiered-5", TIERED, 5, "logistic", 0.8),
    "tiered-8-1-shot": _evaluate("tiered-8", TIERED, 1, "logistic", 0.95),
    "tiered-8-5-shot": _evaluate("tiered-8", TIERED, 5, "logistic", 0.5),
}

# Wide networks: the factored fast weights hold one copy of the parameters, 0.5 GB at l = 8192, whatever the tasks.
_WIDE = {"widths": (64, 256, 1024, 4096, 8192), "seeds": 3, "steps": 50, "out": Path("figures/wide")}
CONVERGENCE = {"wide": Convergence(**_WIDE)}
DRIFT = {"wide": Drift(**_WIDE)}
EQUIVALENCE = {"wide": Equivalence(**_WIDE)}

# The demonstration: fitted to ten minutes on two cores, everything on embedded data.
DEMO_THEORY = Theory(widths=(64, 128, 256, 512), seeds=4, steps=50)
_DEMO_SIZE = {"channels": 8, "cells": 3, "stem_stride": 2, "image_size": 32, "device": "cpu"}
DEMO_SEARCH = Search(**_DEMO_SIZE, tasks=3, repeats=2)
DEMO_TRAIN = Train(**_DEMO_SIZE, epochs=6, learning_rate=0.1, milestones=(4, 5), drop_path=0.0)
DEMO_EVALUATE = Evaluate(tasks=200)
