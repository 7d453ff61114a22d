"""The rules of the source tree, checked on its syntax trees: layers, sizes, randomness, docstrings."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES_PER_FILE, MOST_LINES_PER_FUNCTION = 400, 60

# From the ground up; a module may import from the rows below its own, and a part from itself.
LAYERS = (
    {"errors"},
    {"files", "rng", "tasks", "modules"},
    {"strict_json"},
    {"linalg"},
    {"networks"},
    {"head"},
    {"guard"},
    {"inner_loop"},
    {"kernels.layers"},
    {"factored"},
    {"kernels", "objective"},
    {"maml"},
    {"predictors"},
    {"bounds", "asymptotics", "lipschitz"},
    {"nas", "fewshot"},
    {"nas.statistics"},
    {"nas.scoring"},
    {"nas.search"},
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
# What runs need; it knows no mathematics, and only experiments may import it.
SIDE = {"runtime": {"errors", "files", "strict_json", "runtime"}}

# One algebra of kernels: the modules of the package that may call these functions.
ALGEBRA = {
    **dict.fromkeys(("eigh", "eigvalsh", "svdvals", "cond", "rounding_level"), ("linalg.py",)),
    "block_diag": ("kernels/meta.py",),
    "adaptation_matrix": ("kernels/meta.py", "predictors.py"),
}
# Formulas of layers, which belong to mamltheory.kernels.layers; networks are made of modules.
LAYER_FUNCTIONS = {
    *(f"conv{axes}d{end}" for axes in (1, 2, 3) for end in ("", "_weight", "_input")),
    *("unfold", "max_pool2d", "avg_pool2d", "convolution_backward"),
}

SETTINGS = {"settings", "protocols", "__init__"}
# The same for experiments: a folder per family of commands. Settings may be imported from everywhere.
FAMILIES = (
    {"requirements"},
    {"cell_drawing"},
    {"config", "plotting", "runs", "terminal"},
    {"genotypes", "doctor"},
    {"data"},
    {"theory", "training", "benchmarks"},
    {"search"},
    {"studies", "tables"},
    {"demo", "commands"},
    {"__main__"},
)

GLOBAL_RANDOMNESS = {"torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
SEEDED_NUMPY = {"default_rng", "Generator", "SeedSequence", "PCG64"}


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _tree(source: str | Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PACKAGE = pytest.mark.parametrize("path", _sources("mamltheory"), ids=_name)
PRODUCT = pytest.mark.parametrize("path", _sources("mamltheory", "experiments"), ids=_name)
EVERYTHING = pytest.mark.parametrize("path", _sources("mamltheory", "experiments", "tests"), ids=_name)


def _part(module: str) -> str | None:
    """The part of mamltheory that a module belongs to: "kernels" for mamltheory.kernels.meta."""
    parts = module.split(".")
    if parts[0] != "mamltheory" or len(parts) < 2:
        return None
    return ".".join(parts[1:3]) if ".".join(parts[1:3]) in LEVEL else parts[1]


def _imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
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


def family_violations(family: str, tree: ast.Module) -> list[str]:
    """Imports in a module of ``family`` that point upwards or sideways among the families of commands."""
    level = {name: level for level, row in enumerate(FAMILIES) for name in row}
    modules = [name.split(".") for name in sorted(_imported(tree)) if name.startswith("experiments.")]
    others = [parts for parts in modules if parts[1] != family and parts[-1] not in SETTINGS]
    return [".".join(parts) for parts in others if not level[parts[1]] < level[family]]


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


def algebra_elsewhere(file: str, tree: ast.Module) -> list[str]:
    """Functions of ALGEBRA that a module of the package calls though their place is another."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {ast.unparse(function).rpartition(".")[2] for function in calls}
    return sorted(name for name in called & ALGEBRA.keys() if file not in ALGEBRA[name])


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def public_without_docstring(tree: ast.Module) -> list[str]:
    """Public functions and classes of a module, and public methods of public classes, that say nothing."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    for holder in [node for node in public if isinstance(node, ast.ClassDef)]:
        public += [node for node in holder.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node.name for node in public if not ast.get_docstring(node) and not _is_override(node)]


def _is_override(node: ast.AST) -> bool:
    # torch calls it, torch documents it.
    return isinstance(node, ast.FunctionDef) and node.name in ("forward", "extra_repr")


@PACKAGE
def test_imports_point_downwards_only(path):
    part = _part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if part == "__init__":
        assert not {_part(name) for name in _imported(_tree(path))} & set(SIDE)
        return
    assert part in LEVEL or part in SIDE, f"{part} stands in no layer: add it to LAYERS"
    assert layer_violations(part, _tree(path)) == []


def calls_of_layer_functions(tree: ast.Module) -> list[str]:
    """Calls of torch's functions of convolutions and poolings."""
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if call.rpartition(".")[2] in LAYER_FUNCTIONS]


@pytest.mark.parametrize("path", _sources("mamltheory/nas"), ids=_name)
def test_formulas_of_layers_stand_with_the_kernels(path):
    assert calls_of_layer_functions(_tree(path)) == []


@PACKAGE
def test_torch_is_used_through_its_public_functions(path):
    names = {ast.unparse(node) for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)}
    assert "torch.ops" not in names


@pytest.mark.parametrize("path", _sources("experiments"), ids=_name)
def test_families_of_commands_import_downwards_only(path):
    family = path.relative_to(ROOT / "experiments").with_suffix("").parts[0]
    if path.stem not in SETTINGS:
        assert family_violations(family, _tree(path)) == []


def test_the_check_of_families_finds_what_it_forbids():
    assert family_violations("runs", _tree("from experiments.search.search import search_cells"))
    assert family_violations("tables", _tree("from experiments.studies.stability import timed"))
    assert not family_violations("runs", _tree("from experiments.search.settings import Search"))


@EVERYTHING
def test_files_and_functions_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES_PER_FILE
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in _functions(_tree(path))}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_PER_FUNCTION} == {}


@PACKAGE
def test_the_package_neither_prints_nor_asserts(path):
    nodes = list(ast.walk(_tree(path)))
    assert [node.lineno for node in nodes if isinstance(node, ast.Assert)] == []
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [node.lineno for node in calls if node.func.id == "print"] == []


@EVERYTHING
def test_annotations_are_evaluated_so_that_shapes_are_checked(path):
    futures = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom)]
    assert [node.lineno for node in futures if node.module == "__future__"] == []


def test_spectra_are_taken_in_linalg_and_the_meta_ntk_is_composed_in_kernels_meta_alone():
    package = ROOT / "mamltheory"
    for path in _sources("mamltheory"):
        assert algebra_elsewhere(path.relative_to(package).as_posix(), _tree(path)) == [], path
    planted = _tree("torch.linalg.eigh(torch.block_diag(x))")
    assert algebra_elsewhere("nas/scoring/score.py", planted) == ["block_diag", "eigh"]


@PRODUCT
def test_every_public_name_says_what_it_computes(path):
    tree = _tree(path)
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    assert public_without_docstring(tree) == []


@PRODUCT
def test_randomness_comes_from_explicit_generators(path):
    assert calls_of_global_randomness(_tree(path)) == []


def test_settings_and_commands_load_neither_torch_nor_the_package():
    folder = ROOT / "experiments"
    modules = [folder / f"{name}.py" for name in ("requirements", "commands", "config", "__main__")]
    settings = [path for path in folder.rglob("*.py") if path.stem in SETTINGS]
    assert len(settings) > 10
    for path in [*modules, *settings]:
        tree = _tree(path)
        at_the_top = ast.Module(
            [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        roots = {module.split(".")[0] for module in _imported(at_the_top)}
        assert not roots & {"torch", "numpy", "matplotlib", "mamltheory", "tyro", "rich"}, path


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("kernels", "from mamltheory.maml import meta_output"),
        ("nas", "from mamltheory import fewshot"),
        ("fewshot", "import mamltheory.runtime.progress"),
        ("linalg", "from .errors import ShapeError"),
        ("rng", "def f():\n    import mamltheory.linalg"),
        ("runtime", "from mamltheory.linalg import decay"),
        ("maml", "from experiments import settings"),
    ],
)
def test_the_layer_check_finds_what_it_forbids(part, source):
    assert layer_violations(part, _tree(source))


@pytest.mark.parametrize(
    "source", ["conv2d(x, w)", "nn.functional.unfold(x, 3)", "nn.grad.conv2d_weight(x, s, g)"]
)
def test_the_check_of_formulas_finds_what_it_forbids(source):
    assert calls_of_layer_functions(_tree(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.manual_seed(0)",
        "torch.randn(3)",
        "np.random.rand(3)",
        "np.random.default_rng()",
        "import random\nrandom.shuffle(x)",
    ],
)
def test_the_randomness_check_finds_what_it_forbids(source):
    assert calls_of_global_randomness(_tree(source))


@pytest.mark.parametrize(
    "source", ["torch.randn(3, generator=g)", "np.random.default_rng(3)", "g.normal()", "random.normal()"]
)
def test_the_randomness_check_lets_explicit_generators_through(source):
    assert not calls_of_global_randomness(_tree(source))
