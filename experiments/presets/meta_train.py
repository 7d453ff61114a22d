"""Named settings of the meta-training: one on embedded glyphs in two minutes of a CPU, and MAML's own sizes.

`mini-conv4` has the set-up of the original MAML experiments, which Table 1 cites: Conv4 with 32 filters on 84 × 84
pixels, 5-way tasks with 15 queries per class, 4 tasks in a step (1-shot), 5 inner steps, Adam at 0.001, 60,000 steps.
Their inner rate 0.01 belongs to the cross-entropy; that for the squared loss of the theory is ours.
"""

from pathlib import Path

from experiments.presets.sources import MINI
from experiments.settings import MetaTrain

META_TRAIN = {
    "glyph-smoke": MetaTrain(
        image_size=16, channels=16, algorithm="anil", steps=1000, test_tasks=200,
        out=Path("runs/glyph-smoke/meta-train"),
    ),
    "mini-conv4": MetaTrain(
        data=MINI, image_size=84, queries=15, inner_steps=5, learning_rate=1e-3, steps=60_000, report_every=1000,
        test_tasks=1000, out=Path("runs/mini-conv4/meta-train"),
    ),
}  # fmt: skip
