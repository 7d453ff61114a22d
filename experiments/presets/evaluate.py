"""Named settings of the evaluation: the smoke test on embedded glyphs, the eight numbers of Table 1, and the
first two of them on glyphs of the size and the classes of miniImageNet (`glyph-84`).

Sources: [6.2] empirical results of Section 6.2; [E] the paragraphs of Appendix E; [code] a default of the
authors' released programs where the paper is silent.
"""

from pathlib import Path

from experiments.presets.sources import GLYPHS_MINI, MINI, TIERED
from experiments.settings import Evaluate


def _evaluate(name: str, data: str, shots: int, head: str, C: float) -> Evaluate:
    # [E] 5 augmented copies of the support; [6.2] 1000 tasks; [code] 15 queries per class.
    folder = Path(f"runs/{name}")
    files = {"checkpoint": folder / "train", "out": folder / f"evaluate-{shots}-shot"}
    return Evaluate(data=data, shots=shots, head=head, C=C, augment=5, tasks=1000, queries=15, **files)


# [E] head and C of each of the eight numbers in Table 1.
EVALUATE = {
    "glyph-smoke": Evaluate(
        checkpoint=Path("runs/glyph-smoke/train"), tasks=50, augment=1, out=Path("runs/glyph-smoke/evaluate")
    ),
    "glyph-84-1-shot": _evaluate("glyph-84", GLYPHS_MINI, 1, "svc", 0.2),
    "glyph-84-5-shot": _evaluate("glyph-84", GLYPHS_MINI, 5, "logistic", 0.6),
    "mini-5-1-shot": _evaluate("mini-5", MINI, 1, "svc", 0.2),
    "mini-5-5-shot": _evaluate("mini-5", MINI, 5, "logistic", 0.6),
    "mini-8-1-shot": _evaluate("mini-8", MINI, 1, "svc", 0.35),
    "mini-8-5-shot": _evaluate("mini-8", MINI, 5, "logistic", 0.4),
    "tiered-5-1-shot": _evaluate("tiered-5", TIERED, 1, "svc", 0.75),
    "tiered-5-5-shot": _evaluate("tiered-5", TIERED, 5, "logistic", 0.8),
    "tiered-8-1-shot": _evaluate("tiered-8", TIERED, 1, "logistic", 0.95),
    "tiered-8-5-shot": _evaluate("tiered-8", TIERED, 5, "logistic", 0.5),
}
