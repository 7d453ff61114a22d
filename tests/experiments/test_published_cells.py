"""Published cells by name: the files that training reads."""

import pytest

from experiments import __main__ as shell
from experiments.genotypes import published_cell, read_genotype
from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import published_genotypes


def test_without_a_name_every_published_cell_is_listed_with_its_size(capsys):
    assert shell.main(["cell"]) == 0
    _, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    names = [line.split()[0] for line in lines]
    assert len(names) == len(set(names)) == 16
    assert lines[3].split() == ["mini-8-1", "miniImageNet", "MetaNTK-NAS", "8", "64", "3,181,072"]


def test_a_named_cell_becomes_a_genotype_file(tmp_path, capsys):
    file = tmp_path / "a cell.json"
    assert shell.main(["cell", "metanas-tiered-5", "--out", str(file)]) == 0
    assert read_genotype(file) == published_genotypes()[13].genotype
    assert f"train --genotype '{file}' --cells 5" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "hint"), [("mini-82", "did you mean 'mini-8-2'"), ("x", "expected one of")])
def test_an_unknown_name_is_refused_with_the_nearest_or_all(name, hint):
    with pytest.raises(ConfigurationError, match=hint):
        published_cell(name)
