"""Cells, their scores at initialisation, and the searches: MetaNTK-NAS (Section 5), and halving, which trains.

Cells
    Genotype                                 two cells; ``to_module`` stacks them
    published_genotypes, random_genotype     the cells of the paper and of MetaNAS; random ones
    NetworkSettings                          channels and number of the stacked cells
    Space, normalisation                     the operations and nodes that a search chooses from; norms of operations

Search
    search, Found                            a search by any method, and what it found
    OwnScore                                 a function of yours that ranks networks in a search
    Rung                                     cells and epochs of a stage of halving
"""

from typing import TYPE_CHECKING

from mamltheory.lazy import lazy_names

if TYPE_CHECKING:
    from mamltheory.nas.algorithms.halving import Rung
    from mamltheory.nas.genotype import Genotype, published_genotypes, random_genotype
    from mamltheory.nas.network import NetworkSettings
    from mamltheory.nas.operations import normalisation
    from mamltheory.nas.scoring.own_score import OwnScore
    from mamltheory.nas.searches import Found, search
    from mamltheory.nas.space import Space

__all__ = [
    "Found",
    "Genotype",
    "NetworkSettings",
    "OwnScore",
    "Rung",
    "Space",
    "normalisation",
    "published_genotypes",
    "random_genotype",
    "search",
]

_PLACES = {
    "Found": "searches",
    "Genotype": "genotype",
    "NetworkSettings": "network",
    "OwnScore": "scoring.own_score",
    "Rung": "algorithms.halving",
    "Space": "space",
    "normalisation": "operations",
    "published_genotypes": "genotype",
    "random_genotype": "genotype",
    "search": "searches",
}

__getattr__, __dir__ = lazy_names(__name__, _PLACES)
