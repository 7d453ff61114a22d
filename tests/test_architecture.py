"""The rules of the source tree, checked on its syntax trees: layers, sizes, randomness, docstrings, tests."""

import ast
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES_PER_FILE, MOST_LINES_PER_FUNCTION = 400, 60
MOST_NAMES_OF_SEVERAL_MODULES = 20

# From the ground up; a module may import from the rows below its own, and a part from itself.
LAYERS = (
    {"errors", "accelerator", "lazy", "notebook", "version"},
    {"files", "rng", "tasks", "modules", "intervals", "arguments", "activations", "dynamics"},
    {"strict_json"},
    {"linalg", "products"},
    {"networks"},
    {"head"},
    {"guard"},
    {"inner_loop", "redraw"},
    {"kernels.layers"},
    {"factored"},
    {"kernels", "objective"},
    {"maml"},
    {"network_score", "predictors", "rates"},
    {"finite_width"},
    {"nas", "fewshot"},
    {"nas.statistics", "fewshot.network_file"},
    {"nas.scoring", "fewshot.trained"},
    {"nas.algorithms"},
    {"nas.short_trainings", "nas.search_scorer"},
    {"nas.searches"},
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
# What runs need; it knows no mathematics, and only experiments may import it.
SIDE = {"runtime": {"errors", "files", "notebook", "strict_json", "runtime", "version"}}

# Formulas of layers belong to kernels/layers; cells are made of modules.
LAYER_FUNCTIONS = {
    *(f"conv{axes}d{end}" for axes in (1, 2, 3) for end in ("", "_weight", "_input")),
    *("unfold", "max_pool2d", "avg_pool2d", "convolution_backward"),
}
# The modules of the package that may call these functions: there is one algebra of kernels.
CALLERS = {
    **dict.fromkeys(("eigh", "eigvalsh", "svdvals", "cond", "rounding_level"), ("linalg.py",)),
    "block_diag": ("kernels/meta.py",),
    "adaptation_matrix": ("kernels/meta.py", "predictors.py"),
    **dict.fromkeys(LAYER_FUNCTIONS, ("kernels/layers/", "fewshot/")),
}

# The same for experiments: a folder a family of commands. Settings may be imported from everywhere.
FAMILIES = (
    {"requirements", "program", "examples"},
    {"cell_drawing", "help", "inputs"},
    {"config", "named", "plotting", "runs", "terminal"},
    {"genotypes", "doctor"},
    {"data"},
    {"theory", "training", "benchmarks"},
    {"search"},
    {"studies", "tables", "gpu_check"},
    {"demo", "commands"},
    {"pages"},
    {"__main__"},
)
SETTINGS = {"settings", "__init__"}

GLOBAL_RANDOMNESS = {"torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
SEEDED_NUMPY = {"default_rng", "Generator", "SeedSequence", "PCG64"}

Violations = Callable[[ast.Module], list[str]]


@cache
def _tree(source: str | Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PACKAGE = _sources("mamltheory")
PRODUCT = _sources("mamltheory", "experiments")
TESTS = _sources("tests")


def _by_file(violations: Violations, paths: Iterable[Path]) -> dict[str, list[str]]:
    """The violations of every file that has some."""
    found = {path.relative_to(ROOT).as_posix(): violations(_tree(path)) for path in paths}
    return {name: wrong for name, wrong in found.items() if wrong}


def _part(module: str) -> str | None:
    """The part of mamltheory that a module belongs to: "kernels" for mamltheory.kernels.meta."""
    parts = module.split(".")
    if parts[0] != "mamltheory" or len(parts) < 2:
        return None
    return ".".join(parts[1:3]) if ".".join(parts[1:3]) in LEVEL else parts[1]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {"." * node.level + name for name in names}
            if node.module == "mamltheory":
                found |= {f"mamltheory.{alias.name}" for alias in node.names}
    return found


def layer_violations(part: str, tree: ast.Module) -> list[str]:
    """Imports in a module of ``part`` that the layers forbid."""
    wrong = [name for name in _imported(tree) if name.startswith((".", "experiments", "tests"))]
    parts = {_part(name) for name in _imported(tree)} - {None}
    if part in SIDE:
        return wrong + sorted(parts - SIDE[part])
    return wrong + [
        other for other in sorted(parts) if other != part and not LEVEL.get(other, len(LAYERS)) < LEVEL[part]
    ]


def family_violations(path: str, tree: ast.Module) -> list[str]:
    """Imports in the file at ``path``, below experiments/, that point upwards or sideways among the families.

    An import of ``experiments`` by that name is wrong too: in a wheel, the folder lies inside the package.
    """
    level = {name: level for level, row in enumerate(FAMILIES) for name in row}
    to_the_top, family = "." * len(Path(path).parts), Path(path).with_suffix("").parts[0]
    imported = sorted(_imported(tree))
    modules = [name.removeprefix(to_the_top).split(".") for name in imported if name.startswith(to_the_top)]
    others = [parts for parts in modules if parts[-1] not in SETTINGS]
    wrong = [".".join(parts) for parts in others if not level[parts[0]] < level[family]]
    return wrong + [name for name in imported if name.split(".")[0] == "experiments"]


def calls_of_global_randomness(tree: ast.Module) -> list[str]:
    """Calls that draw from, or seed, a generator that belongs to the whole process."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if "random" not in _imported(tree):  # then "random" is a local name, for an explicit generator
        calls = [call for call in calls if not ast.unparse(call.func).startswith("random.")]
    return [f"{ast.unparse(call.func)} (line {call.lineno})" for call in calls if _is_global_draw(call)]


def _is_global_draw(call: ast.Call) -> bool:
    function = ast.unparse(call.func)
    module, _, name = function.rpartition(".")
    if function in GLOBAL_RANDOMNESS or module == "random":
        return True
    if module in ("np.random", "numpy.random"):
        return name not in SEEDED_NUMPY or not call.args
    return (
        module == "torch" and name in TORCH_DRAWS and all(each.arg != "generator" for each in call.keywords)
    )


def public_without_docstring(tree: ast.Module) -> list[str]:
    """Public functions and classes of a module, and public methods of public classes, without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    for holder in [node for node in public if isinstance(node, ast.ClassDef)]:
        public += [node for node in holder.body if isinstance(node, kinds) and not node.name.startswith("_")]
    module = ["the module"] if tree.body and not ast.get_docstring(tree) else []
    return module + [node.name for node in public if not ast.get_docstring(node) and not _is_override(node)]


def _is_override(node: ast.AST) -> bool:
    # torch calls it, torch documents it.
    return isinstance(node, ast.FunctionDef) and node.name in ("forward", "extra_repr")


def too_long(tree: ast.Module) -> list[str]:
    """Functions above the limit, and the file where its last statement ends beyond the limit of files."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [node.name for node in functions if node.end_lineno - node.lineno >= MOST_LINES_PER_FUNCTION]
    return long + (["the file"] if tree.body and tree.body[-1].end_lineno > MOST_LINES_PER_FILE else [])


def prints_and_asserts(tree: ast.Module) -> list[str]:
    """Assertions and calls of print, by line."""
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    asserts = [f"assert (line {node.lineno})" for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return asserts + [f"print (line {call.lineno})" for call in calls if call.func.id == "print"]


def changeable_values(tree: ast.Module) -> list[str]:
    """Data classes that are compared by value and can be changed, unlike values; state is compared by identity."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = [
        (holder.name, ast.unparse(decorator)) for holder in classes for decorator in holder.decorator_list
    ]
    allowed = ("frozen=True", "eq=False")
    return [name for name, text in found if "dataclass" in text and not any(a in text for a in allowed)]


def calls_elsewhere(file: str, tree: ast.Module) -> list[str]:
    """Functions that a module of the package calls although it may not.

    Those of CALLERS, those of torch.ops, which are not public, and hasattr in the search: its scorers are of one
    protocol, and none is asked what it can do.
    """
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {ast.unparse(function).rpartition(".")[2] for function in calls}
    private = {"torch.ops" for function in calls if ast.unparse(function).startswith("torch.ops.")}
    wrong = {name for name in called & CALLERS.keys() if not file.startswith(CALLERS[name])}
    return sorted(wrong | private | (called & {"hasattr"} if file.startswith("nas/") else set()))


def imports_of_test_modules(tree: ast.Module) -> list[str]:
    """Imports from modules that hold tests: what tests share belongs to a module without tests."""
    return [name for name in _imported(tree) if name.rpartition(".")[2].startswith("test_")]


def test_imports_point_downwards_only():
    parts = {path: _part(_module(path)) for path in PACKAGE}
    strangers = {part for part in parts.values() if part not in (*LEVEL, *SIDE, "__init__", "__main__")}
    assert strangers == set(), "these stand in no layer: add them to LAYERS"
    wrong = {
        _module(path): layer_violations(part, _tree(path))
        for path, part in parts.items()
        if "__init__" not in (part, path.stem)  # names of a package, which it imports when they are used
    }
    assert {name: imports for name, imports in wrong.items() if imports} == {}
    assert not {_part(name) for name in _imported(_tree(ROOT / "mamltheory" / "__init__.py"))} & set(SIDE)


def test_files_and_functions_stay_small():
    assert _by_file(too_long, [*PRODUCT, *TESTS]) == {}


def test_the_package_neither_prints_nor_asserts():
    assert _by_file(prints_and_asserts, PACKAGE) == {}


def test_annotations_are_evaluated_so_that_shapes_are_checked():
    assert _by_file(lambda tree: [n for n in _imported(tree) if n == "__future__"], [*PRODUCT, *TESTS]) == {}


def test_values_are_frozen():
    assert _by_file(changeable_values, PRODUCT) == {}


def test_every_public_name_says_what_it_computes():
    assert _by_file(public_without_docstring, PRODUCT) == {}


def test_randomness_comes_from_explicit_generators():
    assert _by_file(calls_of_global_randomness, PRODUCT) == {}


def test_formulas_of_layers_and_the_algebra_of_kernels_each_have_one_place():
    package = ROOT / "mamltheory"
    names = {path.relative_to(package).as_posix(): path for path in PACKAGE}
    wrong = {name: calls_elsewhere(name, _tree(path)) for name, path in names.items()}
    assert {name: calls for name, calls in wrong.items() if calls} == {}
    planted = _tree("hasattr(f.conv2d(x), torch.linalg.eigh(torch.block_diag(torch.ops.a.b(x))))")
    found = calls_elsewhere("nas/scoring/score.py", planted)
    assert found == ["block_diag", "conv2d", "eigh", "hasattr", "torch.ops"]


def test_most_public_names_are_defined_in_one_module_alone():
    modules = defaultdict(list)
    for path in PRODUCT:
        for node in _tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(_module(path))
    several = {name: places for name, places in modules.items() if len(places) > 1}
    assert len(several) <= MOST_NAMES_OF_SEVERAL_MODULES, several


def test_families_of_commands_import_downwards_only():
    folder = ROOT / "experiments"
    modules = [path.relative_to(folder) for path in folder.rglob("*.py") if path.stem not in SETTINGS]
    wrong = {name.as_posix(): family_violations(str(name), _tree(folder / name)) for name in modules}
    assert {name: imports for name, imports in wrong.items() if imports} == {}
    assert family_violations("runs.py", _tree("from .search.search import search_cells"))
    assert family_violations("tables/table.py", _tree("from ..studies.stability import timed"))
    assert family_violations("tables/table.py", _tree("from experiments.requirements import require"))
    assert not family_violations("tables/table.py", _tree("from .sheets import sheets_of"))
    assert not family_violations("runs.py", _tree("from .search.settings import Search"))


def test_the_wheel_has_every_folder_of_the_package_and_the_commands_inside_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT).parts for path in PRODUCT if path.name == "__init__.py"]
    inside = {".".join(("mamltheory",) * (parts[0] == "experiments") + parts) for parts in folders}
    assert set(settings["packages"]) == inside


def test_no_test_module_is_imported_by_another():
    assert _by_file(imports_of_test_modules, TESTS) == {}


def test_settings_and_commands_load_neither_torch_nor_the_package():
    folder = ROOT / "experiments"
    modules = [
        folder / f"{name}.py" for name in ("requirements", "program", "commands", "config", "__main__")
    ]
    settings = [path for path in folder.rglob("*.py") if path.stem in SETTINGS]
    assert len(settings) > 10
    for path in [*modules, *settings]:
        tree = _tree(path)
        at_the_top = ast.Module(
            [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        imported = _imported(at_the_top) - {"mamltheory.nas.protocols"}  # which imports nothing but settings
        roots = {module.split(".")[0] for module in imported}
        assert not roots & {"torch", "numpy", "matplotlib", "mamltheory", "tyro", "rich"}, path


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("kernels", "from mamltheory.maml import meta_output"),
        ("nas", "from mamltheory import fewshot"),
        ("nas", "from mamltheory.nas.algorithms.ranking import ranks"),
        ("fewshot", "import mamltheory.runtime.progress"),
        ("linalg", "from .errors import ShapeError"),
        ("rng", "def f():\n    import mamltheory.linalg"),
        ("runtime", "from mamltheory.linalg import decay"),
        ("maml", "from experiments import settings"),
    ],
)
def test_the_layer_check_finds_what_it_forbids(part, source):
    assert layer_violations(part, _tree(source))


LONG = "def f():\n" + "    pass\n" * MOST_LINES_PER_FUNCTION


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (calls_of_global_randomness, "torch.manual_seed(0)"),
        (calls_of_global_randomness, "torch.randn(3)"),
        (calls_of_global_randomness, "np.random.rand(3)"),
        (calls_of_global_randomness, "np.random.default_rng()"),
        (calls_of_global_randomness, "import random\nrandom.shuffle(x)"),
        (too_long, LONG),
        (too_long, "\n" * MOST_LINES_PER_FILE + "x = 1"),
        (prints_and_asserts, "def f():\n    assert x"),
        (prints_and_asserts, "print(1)"),
        (public_without_docstring, "x = 1"),
        (public_without_docstring, '"""A module."""\ndef f(): pass'),
        (public_without_docstring, '"""A module."""\nclass A:\n    """A."""\n    def f(self): pass'),
        (changeable_values, "@dataclass\nclass A:\n    x: int"),
        (changeable_values, "@dataclass(frozen=False, order=True)\nclass A:\n    x: int"),
        (imports_of_test_modules, "from tests.nas.test_network import small"),
    ],
)
def test_each_check_finds_what_it_forbids(check, source):
    assert check(_tree(source))


@pytest.mark.parametrize(
    "source", ["torch.randn(3, generator=g)", "np.random.default_rng(3)", "g.normal()", "random.normal()"]
)
def test_the_randomness_check_lets_explicit_generators_through(source):
    assert not calls_of_global_randomness(_tree(source))
