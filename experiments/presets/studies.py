"""Named settings of the studies of scores: embedded glyphs on a CPU, a smoke test, and a GPU's worth."""

from pathlib import Path

from experiments.settings import Correlation, Stability

CORRELATION = {
    "glyph": Correlation(out=Path("runs/correlation-glyph"), runs=Path("runs/correlation-glyph")),
    # A fifth of the computation: images of half the side, small batches; the same number of steps.
    "glyph-quick": Correlation(
        image_size=16,
        epochs=6,
        batch_size=32,
        milestones=(4,),
        repeated=16,
        test_tasks=150,
        initialisations=2,
        batches=16,
        out=Path("runs/correlation-glyph-quick"),
        runs=Path("runs/correlation-glyph-quick"),
    ),
    "glyph-smoke": Correlation(
        image_size=16,
        channels=4,
        networks=6,
        repeated=3,
        epochs=1,
        batch_size=32,
        milestones=(),
        test_tasks=10,
        pools=2,
        pool_images=3,
        initialisations=2,
        batches=2,
        regression_tasks=10,
        patches=200,
        draws=50,
        out=Path("runs/correlation-smoke"),
        runs=Path("runs/correlation-smoke"),
    ),
    "wide": Correlation(
        channels=16,
        cells=5,
        stem_stride=1,
        networks=150,
        repeated=40,
        epochs=30,
        milestones=(18, 26),
        test_tasks=600,
        initialisations=6,
        jobs=4,
        out=Path("runs/correlation-wide"),
        runs=Path("runs/correlation-wide"),
    ),
}
STABILITY = {
    "glyph": Stability(
        gradient_tasks=(3, 6, 12, 24),
        exact_repeats=12,
        out=Path("runs/stability-glyph"),
        runs=Path("runs/stability-glyph"),
    ),
    # The network of the search of that name.
    "glyph-5": Stability(
        cells=5, exact_repeats=0, out=Path("runs/stability-glyph-5"), runs=Path("runs/stability-glyph-5")
    ),
    # The paper's width; thin networks, in which regions are counted, do not have it.
    "glyph-48": Stability(
        channels=48,
        gradient_repeats=4,
        region_repeats=0,
        out=Path("runs/stability-glyph-48"),
        runs=Path("runs/stability-glyph-48"),
    ),
    "wide": Stability(
        channels=48,
        cells=5,
        stem_stride=1,
        gradient_tasks=(3, 6, 12, 24),
        gradient_repeats=16,
        exact_repeats=8,
        chunk=60,
        out=Path("runs/stability-wide"),
        runs=Path("runs/stability-wide"),
    ),
}
