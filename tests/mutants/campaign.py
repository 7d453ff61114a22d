"""Random mutants of the package, each run against the tests that run its line.

A mutant inside a function is a new code object in a fork of a process that has collected the tests; any other is an
edit in a copy of the tree. A stopped campaign resumes; what survived is run again. Survivors are listed with the
reason that ``reasons.json`` gives for the line and its edit, if any. mutmut calls functions through trampolines, which
the shape checks of the tests do not survive; cosmic-ray has one test command for all modules and edits the working
tree. Neither draws from a seed.
"""

import argparse
import ast
import gc
import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType

from tests.mutants.covering import collect, cpu_limit, forked, trace
from tests.mutants.edits import edits

ROOT = Path(__file__).resolve().parents[2]
REASONS = Path(__file__).with_name("reasons.json")
MODULES = (
    *("linalg", "dynamics", "kernels", "factored", "inner_loop", "objective", "maml", "predictors"),
    *("finite_width/bounds", "nas"),
    *("fewshot/episodes", "fewshot/evaluation", "fewshot/statistics", "fewshot/augment"),
)
NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".hypothesis", "_build", "runs", "__pycache__", "*.egg-info", "shared")
)
STATIC = ("tests/test_architecture.py", "tests/test_defaults.py")
KILLED, SURVIVED, NOT_REPLACED = 1, 0, 2


def drawn(count, seed, modules):
    """``count`` mutants; a smaller count has the first of a larger."""
    every, chosen = [], []
    for path in (ROOT / "mamltheory" / name for name in modules):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            source = file.read_text(encoding="utf-8")
            every += [(file.relative_to(ROOT).as_posix(), edit, source) for edit in edits(source)]
    random.Random(seed).shuffle(every)
    for file, edit, source in every:
        mutated = edit.apply(source)
        with suppress(SyntaxError, ValueError):
            compile(mutated, file, "exec")
            key = hashlib.blake2b(f"{file}\n{mutated}".encode(), digest_size=6).hexdigest()
            change = f"{edit.before!r} -> {edit.after!r}"
            place = f"{file}: {change} in {source.splitlines()[edit.line - 1].strip()}"
            mutant = {"key": key, "file": file, "edit": f"{file}:{edit.line}: {change}", "place": place}
            chosen.append(mutant | {"lines": statement(source, edit.line), "source": mutated})
        if len(chosen) == count:
            break
    return chosen


def statement(source, line):
    """The lines of the innermost statement at a line, without those of the statements in it."""
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and _first(node) <= line <= node.end_lineno
    ]
    inner = max(around, key=lambda node: (_first(node), -node.end_lineno))
    below = {
        number
        for node in ast.walk(inner)
        if isinstance(node, ast.stmt) and node is not inner
        for number in range(_first(node), node.end_lineno + 1)
    }
    return [number for number in range(_first(inner), inner.end_lineno + 1) if number not in below]


def _first(node):
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def in_a_function(source, line):
    """Whether a line is in the body of a function, whose code can be replaced in a process that has imported it."""
    return any(
        node.body[0].lineno <= line <= node.end_lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    )


def functions_of(code: CodeType) -> Iterator[CodeType]:
    """The code of the functions and methods of a module, without that of the functions inside them."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from [inner] if inner.co_flags & inspect.CO_OPTIMIZED else functions_of(inner)


class Functions:
    """The functions of the imported package, by file and qualified name."""

    def __init__(self):
        package = importlib.import_module("mamltheory")
        for module in pkgutil.walk_packages(package.__path__, "mamltheory."):
            with suppress(ImportError):
                importlib.import_module(module.name)
        self.found = defaultdict(list)
        for each in gc.get_objects():
            if type(each) is FunctionType:  # isinstance asks lazy objects for their class, and they warn
                self.found[each.__code__.co_filename, each.__code__.co_qualname].append(each)
        gc.freeze()

    def replace(self, file, mutated):
        """Give the functions of a file their mutated code; says whether all that differ could be."""
        path = str(ROOT / file)
        before, after = (
            sorted(functions_of(compile(source, path, "exec")), key=lambda code: code.co_firstlineno)
            for source in ((ROOT / file).read_text(encoding="utf-8"), mutated)
        )
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        for old, new in changed:
            functions = self.found.get((path, old.co_qualname), ())
            if len({each.__code__ for each in functions}) != 1:  # none, or a property and its setter
                return False
            for each in functions:
                each.__code__ = new
        return bool(changed)


def in_process(mutant, names, tests, functions, limit):
    """How a mutant ends whose functions are replaced in this process, a fork."""
    cpu_limit(limit)
    try:
        replaced = functions.replace(mutant["file"], mutant["source"])
    except ValueError:  # other variables of the functions around it
        replaced = False
    return (SURVIVED if tests.passes(names) else KILLED) if replaced else NOT_REPLACED


def in_a_copy(mutant, names, folder, limit):
    """How a mutant ends that is an edit in a copy of the tree."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=NOT_COPIED)
    (tree / mutant["file"]).write_text(mutant["source"], encoding="utf-8")
    cpu_limit(limit)
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, *STATIC, *names]
    done = subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)})
    return SURVIVED if done.returncode in (0, 5) else KILLED


def campaign(mutants, results, tests, covering, *, jobs, budget):
    """The outcome of every mutant, from the file of results if it was killed before, else by running it."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    known = {entry["key"]: entry for entry in map(json.loads, lines) if entry["killed"]}
    missing = {mutant["key"]: mutant for mutant in mutants if mutant["key"] not in known}
    functions = Functions()

    def call(mutant):
        names = covering.choose(mutant["file"], mutant["lines"], budget)
        limit = 60 + 3 * sum(covering.seconds[name] for name in names)
        inside = in_a_function((ROOT / mutant["file"]).read_text(encoding="utf-8"), mutant["lines"][0])

        def run(folder):
            code = in_process(mutant, names, tests, functions, limit) if inside else NOT_REPLACED
            return in_a_copy(mutant, names, folder, limit) if code == NOT_REPLACED else code

        return mutant["key"], run

    for key, code in forked(map(call, missing.values()), jobs):
        if code > KILLED:  # below 0 is a signal: beyond the limit of CPU time
            raise RuntimeError(f"{missing[key]['edit']}: its process ended with {code}")
        entry = {name: missing[key][name] for name in ("key", "file", "edit", "place")}
        known[key] = entry | {"killed": code != SURVIVED}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known[key]) + "\n")
        print("killed  " if code != SURVIVED else "SURVIVED", code, entry["place"], flush=True)
    return [mutant | {"killed": known[mutant["key"]]["killed"]} for mutant in mutants]


def table(entries, reasons):
    """Killed mutants by file, their share, and every survivor with its reason."""
    rows = []
    for name in sorted({entry["file"] for entry in entries}):
        killed = [entry["killed"] for entry in entries if entry["file"] == name]
        rows.append(f"{name:56} {sum(killed):4} of {len(killed):3} killed")
    survivors = [entry for entry in entries if not entry["killed"]]
    real = len(entries) - sum(entry["place"] in reasons for entry in survivors)
    killed = len(entries) - len(survivors)
    rows.append(
        f"{killed} of {real} killed: {100 * killed / max(real, 1):.1f} % of those without a reason to survive"
    )
    rows += [f"survivor {e['key']}  {e['edit']}  {reasons.get(e['place'], '')}".rstrip() for e in survivors]
    return "\n".join(rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants that run side by side, one thread each")
    parser.add_argument("--budget", type=float, default=60, help="CPU seconds of tests for a mutant")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="files or folders of mamltheory")
    parser.add_argument("--out", type=Path, default=Path("runs/mutants"))
    options = parser.parse_args(arguments)
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    mutants = drawn(options.count, options.seed, options.modules)

    def use(tests):
        covering = trace(tests, options.out / "covering", options.jobs)
        results = options.out / "outcomes.jsonl"
        entries = campaign(mutants, results, tests, covering, jobs=options.jobs, budget=options.budget)
        text = table(entries, json.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {})
        (options.out / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(text)

    collect(use)


if __name__ == "__main__":
    main()
