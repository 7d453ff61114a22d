"""Named settings of the training: the smoke test on embedded glyphs, the paper's four experiments, and the recipe of
the first on glyphs of the size and the classes of miniImageNet (`glyph-84`; no mirrored characters).

Sources: [6.1] optimisation set-up of Section 6.1; [E] the paragraphs of Appendix E; [code] a default of the
authors' released programs where the paper is silent.
"""

from pathlib import Path

from experiments.presets.sources import GLYPHS_MINI, MINI, TIERED
from experiments.settings import Train


def _train(name: str, data: str, cells: int, batch_size: int) -> Train:
    if data in (MINI, GLYPHS_MINI):
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
    "glyph-84": _train("glyph-84", GLYPHS_MINI, 5, 64),
    "mini-5": _train("mini-5", MINI, 5, 64),
    "mini-8": _train("mini-8", MINI, 8, 40),
    "tiered-5": _train("tiered-5", TIERED, 5, 64),
    "tiered-8": _train("tiered-8", TIERED, 8, 56),
}
