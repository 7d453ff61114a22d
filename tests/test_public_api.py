import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import mamltheory
import mamltheory.fewshot
import mamltheory.nas
from mamltheory import Task, condition_number, errors, generator, meta_ntk

PACKAGES = {package.__name__: package for package in (mamltheory, mamltheory.fewshot, mamltheory.nas)}
PUBLIC = [(package, name) for package in PACKAGES for name in sorted(PACKAGES[package].__all__)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_listed_name_exists_and_every_imported_name_is_listed(package):
    module = PACKAGES[package]
    public = module.__all__
    assert len(public) == len(set(public))
    source = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    block = next(node for node in source.body if isinstance(node, ast.If))  # what type checkers read
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {name: f"{package}.{place}" for name, place in module._PLACES.items()}
    assert set(imported) == set(public) <= set(dir(module))
    for name in public:
        assert name in module.__doc__
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_every_public_name_is_documented_and_annotated(package, name):
    value = getattr(PACKAGES[package], name)
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")  # what a dataclass gets when nobody wrote anything
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        annotations = [signature.return_annotation, *(p.annotation for p in signature.parameters.values())]
        assert inspect.Signature.empty not in annotations


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_every_public_function_has_an_example(package, name):
    value = getattr(PACKAGES[package], name)
    if package == "mamltheory" or inspect.isfunction(value):
        assert re.search(r">>>|See :", value.__doc__)


def test_every_error_is_caught_by_the_package_error_and_by_its_builtin():
    kinds = [
        kind for kind in vars(errors).values() if inspect.isclass(kind) and kind is not errors.MamlTheoryError
    ]
    assert len(kinds) >= 8
    for kind in kinds:
        assert issubclass(kind, errors.MamlTheoryError)
        assert issubclass(kind, (ValueError, TypeError, ArithmeticError, OSError))


def test_a_network_of_ones_own_is_scored_in_five_lines():
    with torch.random.fork_rng():
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5))
    g = generator(0, "images")
    x, y = torch.randn(10, 3, 2, 2, generator=g), torch.eye(5).repeat(2, 1)
    tasks = [Task(x[:5], y[:5], x[5:], y[5:])]
    score = condition_number(meta_ntk(network, tasks))
    assert 1 < score < 1e6
