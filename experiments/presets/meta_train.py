"""Named settings of the meta-training: one on embedded glyphs in two minutes of a CPU, and MAML's own sizes.

The inner rate of `glyph-smoke`, one of 0.01, 0.03, 0.1 and 0.3, was chosen by the accuracy on tasks of the
validation classes after all its steps (`--split val --inner-rate RATE`): 48.7, 60.5, 63.4 and 55.2 %, each ± 1.8.
A short run would have chosen another one: after 200 steps 0.03 is ahead, with 50.7 % against 38.6 (MAML: 52.8, 35.6).

`mini-conv4` has the set-up of the original MAML experiments, which Table 1 cites: Conv4 with 32 filters on 84 × 84
pixels, 5-way tasks with 15 queries per class, 4 tasks in a step (1-shot), 5 inner steps, Adam at 0.001, 60,000 steps.
Their inner rate 0.01 belongs to the cross-entropy. For the squared loss of the theory the 800 features of this network
make five steps explode from 0.003 on; 0.0003 was only tried for 30 steps on the embedded glyphs of this size, where it
brings the validation classes to 65.4 ± 2.8 % and 0.001 to 26.5 ± 1.4 % (60 tasks; `--data glyphs-mini --queries 5`).
"""

from pathlib import Path

from experiments.presets.sources import MINI
from experiments.settings import MetaTrain

META_TRAIN = {
    "glyph-smoke": MetaTrain(
        image_size=16, channels=16, algorithm="anil", inner_rate=0.1, steps=1000, test_tasks=200,
        out=Path("runs/glyph-smoke/meta-train"),
    ),
    "mini-conv4": MetaTrain(
        data=MINI, image_size=84, queries=15, inner_steps=5, inner_rate=3e-4, learning_rate=1e-3, steps=60_000,
        report_every=1000, test_tasks=1000, out=Path("runs/mini-conv4/meta-train"),
    ),
}  # fmt: skip
