"""Operations and edges have one spelling, and those of earlier versions are read."""

from mamltheory.nas.algorithms.ranking import contests
from mamltheory.nas.algorithms.state import RoundReport
from mamltheory.nas.genotype import Candidates, Edge, published_genotypes
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.spelling import (
    OPERATION_WORDS,
    cells_in_words,
    contest_words,
    edge_words,
    operation_words,
    source_words,
)


def test_every_operation_has_a_spelling_of_its_own_and_a_users_keeps_its_name():
    assert set(OPERATION_WORDS) == set(OPERATIONS)
    assert len(set(OPERATION_WORDS.values())) == len(OPERATIONS)
    assert operation_words("conv_5x5") == "conv_5x5"


def test_edges_are_spelt_from_source_to_node():
    assert [edge_words(*Edge(0, 1)), edge_words(*Edge(2, 3)), edge_words(0, 0, typeset=True)] == [
        "cₖ₋₁ → 0",
        "1 → 2",
        "$c_{k-2}$ → 0",
    ]


def test_contests_have_that_spelling_and_reports_of_earlier_versions_get_it():
    names = list(contests(Candidates().operators()))
    assert names[0] == "normal cₖ₋₂ → 0"
    assert names[-1] == contest_words("reduce", 2, 3) == "reduce 1 → 2"
    earlier = ["normal 0←0", "reduce 2←3", "normal node 2"]
    report = RoundReport(3, "fixed", tuple(earlier)).to_json()
    assert RoundReport.from_json(report).undecided == ("normal cₖ₋₂ → 0", "reduce 1 → 2", "normal node 2")


def test_a_notebook_draws_cells_in_that_spelling():
    drawing = published_genotypes()[0].genotype._repr_html_()
    assert f">{source_words(0)}<" in drawing
    assert all(name not in drawing for name in OPERATIONS)
    assert "sep conv 3×3" in drawing
    assert "5 × sep conv 3×3" in repr(published_genotypes()[0].genotype)


def test_a_record_spells_cells_as_the_text_does():
    genotype = published_genotypes()[0].genotype
    words = cells_in_words(genotype.edges())
    (operation, source), *_ = genotype.normal.nodes[0]
    assert words["normal"][edge_words(0, source)] == operation_words(operation)
    assert {kind: len(edges) for kind, edges in words.items()} == {"normal": 6, "reduce": 6}
