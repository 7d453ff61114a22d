"""Named settings of the search: the smoke test on embedded glyphs, and the paper's four experiments.

Sources: [6.1] optimisation set-up of Section 6.1; [E] the paragraphs of Appendix E; [code] a default of the
authors' released programs where the paper is silent.
"""

import math
from pathlib import Path

from experiments.presets.sources import GLYPHS_MINI, MINI, TIERED
from experiments.settings import Search


def _search(name: str, data: str, cells: int, **kernel: object) -> Search:
    # [code] 48 channels, tasks of 5 ways, 1 shot and 1 query at 32 × 32 pixels, and summed outputs; with the
    # protocol paper also 3 tasks and 3 repeats.
    paper = {"protocol": "paper", "channels": 48, "image_size": 32, "outputs": "sum"}
    return Search(data=data, cells=cells, out=Path(f"runs/{name}/search"), **paper, **kernel)


# [E] λτ and ridge: ∞ and 1e-3, except 1 and 1e-5 for 8 cells on miniImageNet.
# [6.1] the MAML kernel for 5 cells, the ANIL kernel for 8.
SEARCH = {
    "glyph-smoke": Search(
        protocol="stable",
        channels=4,
        cells=3,
        stem_stride=2,
        tasks=8,
        repeats=6,
        least_repeats=4,
        out=Path("runs/glyph-smoke/search"),
    ),
    "glyph-5": Search(
        protocol="stable",
        channels=8,
        cells=5,
        stem_stride=2,
        out=Path("runs/glyph-5/search"),
    ),
    "mini-5": _search("mini-5", MINI, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
    "mini-8": _search("mini-8", MINI, 8, kernel="anil", inner_time=1.0, ridge=1e-5),
    "tiered-5": _search("tiered-5", TIERED, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
    "tiered-8": _search("tiered-8", TIERED, 8, kernel="anil", inner_time=math.inf, ridge=1e-3),
    "glyph-84": _search("glyph-84", GLYPHS_MINI, 5, kernel="maml", inner_time=math.inf, ridge=1e-3),
}
