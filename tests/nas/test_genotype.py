import inspect
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import GenotypeError
from mamltheory.nas.genotype import (
    EDGES,
    Candidates,
    Cell,
    Edge,
    Genotype,
    Operator,
    published_genotypes,
    random_genotype,
)
from mamltheory.nas.genotype_file import check_keys, genotype_path
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.space import PAPER
from mamltheory.rng import generator

FORMS = st.sampled_from(["two", "all"])


@pytest.mark.paper("Sec. 6.1: search space")
def test_the_search_space_has_seven_operations_on_nine_edges_of_two_cells():
    assert len(OPERATIONS) == 7
    assert len(EDGES) == 9
    assert len(Candidates().operators()) == 126


@given(seed=st.integers(0, 10_000), inputs=FORMS)
@settings(max_examples=20, deadline=None)
def test_json_and_candidates_give_the_genotype_back(seed, inputs):
    genotype = random_genotype(generator(seed, "genotype"), inputs)
    assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    assert genotype.candidates().genotype() == genotype
    candidates = genotype.candidates()
    assert Candidates.from_json(json.loads(json.dumps(candidates.to_json()))) == candidates


@given(seed=st.integers(0, 10_000), inputs=FORMS)
@settings(max_examples=20, deadline=None)
def test_random_genotypes_are_reproducible_and_have_the_requested_form(seed, inputs):
    first, second = (random_genotype(generator(seed, "genotype"), inputs) for _ in range(2))
    assert first == second
    counts = [2, 2, 2] if inputs == "two" else [2, 3, 4]
    assert [len(node) for node in first.normal.nodes] == counts
    assert len(first.edges()["reduce"]) == sum(counts)


def test_random_genotypes_use_every_operation_and_every_source():
    drawn = [random_genotype(generator(0, "genotype", i)) for i in range(60)]
    pairs = {(o, s) for g in drawn for node in g.normal.nodes for o, s in node}
    assert pairs == {(o, s) for o in OPERATIONS for s in range(4)}


def test_edges_name_the_vertices_of_a_drawing():
    cell = published_genotypes()[0].genotype.normal
    assert cell.edges()[:3] == ((0, 2, "sep_conv_3x3"), (1, 2, "sep_conv_3x3"), (1, 3, "sep_conv_3x3"))
    assert all(source < vertex for source, vertex, _ in cell.edges())


TWO = ((("conv_3x3", 0), ("conv_3x3", 1)),) * 3


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (TWO[:2], "3 nodes"),
        (((("conv_3x3", 0), ("conv_7x7", 1)), *TWO[1:]), "conv_7x7"),
        (((("conv_3x3", 0), ("conv_3x3", 2)), *TWO[1:]), "sources 0 to 1"),
        (((("conv_3x3", 0), ("conv_3x3", -1)), *TWO[1:]), "sources 0 to 1"),
        (((("conv_3x3", 1), ("skip_connect", 1)), *TWO[1:]), "twice"),
        (((("conv_3x3", 0),), *TWO[1:]), "2, 3, 4"),
    ],
)
def test_a_malformed_cell_is_refused_with_advice(nodes, says):
    with pytest.raises(GenotypeError, match=says):
        Cell(nodes)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"normal": 3, "reduce": 3},
        {"normal": [[["conv_3x3"]]] * 3, "reduce": []},
        {"normal": []},
        {"normal": None, "reduce": 1},
    ],
)
def test_malformed_json_is_refused(data):
    with pytest.raises(GenotypeError):
        Genotype.from_json(data)


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_a_concatenation_that_the_networks_do_not_have_is_refused(kind):
    plain = random_genotype(generator(0, "concatenation")).to_json()
    for same in ([2, 3, 4], (2, 3, 4), range(2, 5)):
        assert Genotype.from_json(plain | {f"{kind}_concat": same}).to_json() == plain
    for other in (
        [3, 4],
        [2, 3],
        [4, 3, 2],
        [2, 3, 4, 5],
        [0, 1, 2, 3, 4],
        [],
        [2.0, 3, 4],
        [[2, 3, 4]],
        None,
        "234",
    ):
        with pytest.raises(GenotypeError, match=rf"'{kind}_concat' is .* concatenate all nodes, \[2, 3, 4\]"):
            Genotype.from_json(plain | {f"{kind}_concat": other})


@pytest.mark.parametrize(
    "key", ["concat", "Normal", "normal_concats", "stem", "auxiliary", 3, "x\x1b" * 10**5]
)
def test_an_unknown_key_of_a_genotype_is_refused_with_the_supported_ones(key):
    plain = random_genotype(generator(0, "concatenation")).to_json()
    with pytest.raises(GenotypeError, match=r"no key .*: supported are 'normal', 'reduce' and") as caught:
        Genotype.from_json({**plain, key: [2, 3, 4]})
    assert len(str(caught.value)) < 500


def test_a_source_must_be_an_integer_and_not_a_flag():
    good = {"normal": [list(map(list, node)) for node in TWO]}
    good["reduce"] = [[["conv_3x3", 0.0], ["conv_3x3", True]], *good["normal"][1:]]
    with pytest.raises(GenotypeError, match="expected"):
        Genotype.from_json(good)


def test_removing_an_operator_leaves_the_rest_and_cannot_be_done_twice():
    operator = Operator("reduce", Edge(1, 2), "skip_connect")
    left = Candidates().without(operator)
    assert set(Candidates().operators()) - set(left.operators()) == {operator}
    with pytest.raises(GenotypeError, match="not alive"):
        left.without(operator)


def test_candidates_refuse_dead_nodes_unknown_names_and_repeats():
    full = Candidates().normal
    for edges, says in (
        (full[:8], "8 edges"),
        ((("conv_9x9",), *full[1:]), "unknown"),
        ((("conv_3x3", "conv_3x3"), *full[1:]), "twice"),
        (((), (), *full[2:]), "no input"),
    ):
        with pytest.raises(GenotypeError, match=says):
            Candidates(normal=edges)
    with pytest.raises(GenotypeError, match="finish the search"):
        Candidates().genotype()
    with pytest.raises(GenotypeError, match="keys"):
        Candidates.from_json({"normal": []})


def test_random_genotypes_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    random_genotype(generator(1, "genotype"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_space_is_no_part_of_how_a_cell_is_shown():
    genotype = random_genotype(generator(0, "shown"))
    assert repr(genotype.normal) == f"Cell(nodes={genotype.normal.nodes})"
    assert repr(Candidates()) == f"Candidates(normal={Candidates().normal}, reduce={Candidates().reduce})"
    chosen = inspect.signature(Genotype.to_module).parameters
    assert [each.default for each in chosen.values()][1:] == [48, 5, 64, 1, 0]


def test_a_path_is_single_when_no_edge_of_either_cell_has_a_choice():
    one, two = (("conv_3x3",),) * 9, (("conv_3x3", "skip_connect"), *(("conv_3x3",),) * 8)
    assert Candidates(one, one).is_single_path()
    assert not Candidates(two, one).is_single_path()
    assert not Candidates(one, two).is_single_path()


def test_a_genotype_comes_back_from_its_file_and_another_file_is_kept(tmp_path):
    genotype = published_genotypes()[0].genotype
    file = genotype.save(tmp_path)
    assert file == tmp_path / "genotype.json" == genotype.save(file)
    for path in (file, str(file), tmp_path, str(tmp_path)):
        assert Genotype.load(path) == genotype
    with pytest.raises(GenotypeError, match=r"from_json takes the content .*Genotype\.load"):
        check_keys(str(file), PAPER)
    with pytest.raises(GenotypeError, match="holds something else"):
        published_genotypes()[1].genotype.save(file)
    with pytest.raises(GenotypeError, match="cannot read"):
        Genotype.load(tmp_path / "none.json")
    with pytest.raises(GenotypeError, match="cannot write"):
        genotype.save(tmp_path / "none" / "genotype.json")
    with pytest.raises(GenotypeError, match="the path is a int"):
        genotype_path(3)
    file.write_text('{"normal": []}')
    with pytest.raises(GenotypeError, match=r"genotype\.json holds no genotype"):
        Genotype.load(file)
