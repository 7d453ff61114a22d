"""The numbers in Tables 1 and 2 of the paper, as printed; this code has not measured any of them.

Accuracies are in per cent. The number after ± is a standard deviation over runs by the captions; rows of other methods
quote their authors, who mostly give a 95 % interval over the tasks of one network.
"""

from dataclasses import dataclass

SOURCE = "Wang, Wang, Sun and Li, CVPR 2022"
MINI, TIERED = "mini-ImageNet", "tiered-ImageNet"


@dataclass(frozen=True)
class PaperResult:
    """One method on one data set.

    Attributes:
        table: Number of the table.
        model: Name of the method.
        architecture: Kind of network.
        cells: Number of stacked cells; None for other networks.
        training: Training method.
        data: Name of the data.
        parameters: Number of parameters.
        hours: GPU hours of the search.
        accuracy: (mean, ±) by number of shots.
        quoted: Whether the paper quotes other authors.
    """

    table: int
    model: str
    architecture: str
    cells: int | None
    training: str
    data: str
    parameters: str | None
    hours: str | None
    accuracy: dict[int, tuple[str, str]]
    quoted: bool = False


def _both(
    model: str, architecture: str, cells: int | None, training: str, *printed: tuple, quoted: bool = False
) -> list[PaperResult]:
    """A row of Table 1: parameters, hours, 1-shot and 5-shot on mini-ImageNet, then on tiered-ImageNet."""
    return [
        PaperResult(1, model, architecture, cells, training, data, size, hours, {1: one, 5: five}, quoted)
        for data, (size, hours, one, five) in zip((MINI, TIERED), printed, strict=False)
    ]


def _ablation(model: str, one: dict[int, tuple], five: dict[int, tuple]) -> list[PaperResult]:
    """A row of Table 2: 1-shot and 5-shot by the number of cells, on mini-ImageNet."""
    return [
        PaperResult(2, model, "Cells", cells, "RFS", MINI, None, None, {1: one[cells], 5: five[cells]})
        for cells in (5, 8)
    ]


# fmt: off
_QUOTED = [
    *_both("MAML", "Conv4", None, "MAML", ("30k", None, ("48.70", "1.84"), ("63.11", "0.92")),
           ("30k", None, ("51.67", "1.81"), ("70.30", "1.75")), quoted=True),
    *_both("ANIL", "Conv4", None, "ANIL", ("30k", None, ("48.0", "0.7"), ("62.2", "0.5")), quoted=True),
    *_both("MetaOptNet", "ResNet-12", None, "MetaOptNet", ("12.5M", None, ("62.64", "0.61"), ("78.63", "0.46")),
           ("12.7M", None, ("65.99", "0.72"), ("81.56", "0.53")), quoted=True),
    *_both("RFS", "ResNet-12", None, "RFS", ("12.5M", None, ("62.02", "0.63"), ("79.64", "0.44")),
           ("12.7M", None, ("69.74", "0.72"), ("84.41", "0.55")), quoted=True),
    *_both("AutoMeta", "Cells", None, "Reptile", ("100k", "2688", ("57.6", "0.2"), ("74.7", "0.2")), quoted=True),
    *_both("T-NAS++", "Cells", 2, "FOMAML", ("27k", "48", ("54.11", "1.35"), ("69.59", "0.85")), quoted=True),
    *_both("MetaNAS", "Cells", 5, "Reptile", ("1.1M", "168", ("63.1", "0.3"), ("79.5", "0.2")), quoted=True),
]
_OWN = [
    *_both("MetaNAS (retrained)", "Cells", 5, "RFS", ("2.01M", "168", ("64.24", "0.11"), ("79.75", "0.13")),
           ("2.17M", "168", ("70.16", "0.09"), ("84.99", "0.22"))),
    *_both("MetaNTK-NAS", "Cells", 5, "RFS", ("1.77M", "1.54", ("63.88", "0.81"), ("80.07", "0.45")),
           ("2.22M", "2.20", ("71.12", "0.49"), ("85.71", "0.22"))),
    *_both("MetaNAS (retrained)", "Cells", 8, "RFS", ("3.53M", "168", ("63.88", "0.23"), ("79.88", "0.14")),
           ("3.70M", "168", ("72.32", "0.02"), ("86.48", "0.06"))),
    *_both("MetaNTK-NAS", "Cells", 8, "RFS", ("3.21M", "1.92", ("64.26", "0.14"), ("80.35", "0.12")),
           ("4.78M", "2.73", ("72.37", "0.79"), ("86.43", "0.53"))),
]
_ABLATION = [
    *_ablation("MetaNTK-NAS", {5: ("63.88", "0.81"), 8: ("64.26", "0.14")},
               {5: ("80.07", "0.45"), 8: ("80.35", "0.12")}),
    *_ablation("TE-NAS", {5: ("62.51", "0.42"), 8: ("63.51", "0.16")},
               {5: ("79.02", "0.35"), 8: ("79.86", "0.42")}),
    *_ablation("Linear regions", {5: ("62.96", "1.05"), 8: ("63.99", "0.76")},
               {5: ("79.13", "0.96"), 8: ("79.88", "0.51")}),
    *_ablation("Random cell", {5: ("62.55", "1.15"), 8: ("62.76", "0.83")},
               {5: ("78.90", "0.58"), 8: ("79.18", "0.72")}),
]
# fmt: on

PAPER_RESULTS: tuple[PaperResult, ...] = (*_QUOTED, *_OWN, *_ABLATION)
