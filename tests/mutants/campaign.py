"""Random mutants of the package, each run against the test files that cover its module, in copies of the tree.

A stopped campaign resumes. Survivors are listed with the reason that ``reasons.json`` gives for the line and its edit,
if any. mutmut runs the whole suite first and calls functions through trampolines, which the shape checks of the tests
do not survive; cosmic-ray has one test command for all modules and edits the working tree. Neither draws from a seed.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.mutants.edits import edits

ROOT = Path(__file__).resolve().parents[2]
REASONS = Path(__file__).with_name("reasons.json")
MODULES = (
    *("linalg", "dynamics", "kernels", "factored", "inner_loop", "objective", "maml", "predictors"),
    *(
        "finite_width/bounds",
        "nas",
        "fewshot/episodes",
        "fewshot/evaluation",
        "fewshot/statistics",
        "fewshot/augment",
    ),
)
NOT_COPIED = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info", "shared")
OTHER_TESTS = ("cuda", "experiments", "runtime", "ledger", "fake_cuda", "mutants")
CPU_SECONDS = 400
LAST_STAGE = (
    "tests/test_architecture.py",
    "tests/test_examples.py",
    "tests/test_wrong_arguments.py",
    "tests/paper/test_exact.py",
)


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
            text = f"{file}:{edit.line}: {edit.before!r} -> {edit.after!r}"
            place = (
                f"{file}: {edit.before!r} -> {edit.after!r} in {source.splitlines()[edit.line - 1].strip()}"
            )
            chosen.append({"key": key, "file": file, "edit": text, "place": place, "source": mutated})
        if len(chosen) == count:
            break
    return chosen


@cache
def imports_of_tests():
    """The modules and public names of the package that every test file imports."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path.relative_to(ROOT / "tests").parts[0] not in OTHER_TESTS and path.name != "test_mutations.py":
            names = found.setdefault(path.relative_to(ROOT).as_posix(), set())
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def stages(file):
    """The test file that mirrors a module, those that import the module, the others of its folder, and LAST_STAGE."""
    module, known = file.removeprefix("mamltheory/").removesuffix(".py"), imports_of_tests()
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    wanted = {f"mamltheory.{module.replace('/', '.')}", *(f"mamltheory.{name}" for name in defined)}
    covering = [name for name, names in known.items() if names & wanted]
    folder, _, stem = f"tests/{module}".rpartition("/")
    near = [name for name in known if name.startswith(f"{folder}/") and folder != "tests"]
    mirror = f"{folder}/test_{stem}.py"
    first = [mirror] if mirror in known else [name for name in near if name in covering] or near
    second = [name for name in covering or near if name not in first]
    third = [name for name in near if name not in first + second]
    return [first, second, third, [name for name in LAST_STAGE if name not in first + second + third]]


def passes(folder, files):
    """Whether tests pass in a copy of the tree, or none of them is fast."""
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    limited = ["sh", "-c", f'ulimit -t {CPU_SECONDS}; exec "$@"', "sh", *command]  # some mutants do not end
    own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "mutants"}
    return subprocess.run(limited, cwd=folder, env=os.environ | own, capture_output=True).returncode in (0, 5)


def outcome(mutant, folder):
    """Whether the tests kill a mutant, stage by stage until one does."""
    place = folder / mutant["file"]
    original = place.read_text(encoding="utf-8")
    place.write_text(mutant["source"], encoding="utf-8")
    killed = not all(passes(folder, files) for files in stages(mutant["file"]) if files)
    place.write_text(original, encoding="utf-8")
    return {name: mutant[name] for name in ("key", "file", "edit", "place")} | {"killed": killed}


def campaign(mutants, results, jobs):
    """The outcome of every mutant, from the file of results where it stands, else by running it."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    known = {entry["key"]: entry for entry in map(json.loads, lines)}
    results.parent.mkdir(parents=True, exist_ok=True)
    local = threading.local()
    with tempfile.TemporaryDirectory() as scratch:

        def copy_of_the_tree():
            local.folder = Path(scratch) / str(threading.get_ident())
            shutil.copytree(ROOT, local.folder, ignore=NOT_COPIED)

        with ThreadPoolExecutor(jobs, initializer=copy_of_the_tree) as pool:
            waiting = [mutant for mutant in mutants if mutant["key"] not in known]
            for entry in pool.map(lambda mutant: outcome(mutant, local.folder), waiting):
                known[entry["key"]] = entry
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
                print("killed  " if entry["killed"] else "SURVIVED", entry["edit"], flush=True)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants that run side by side, one thread each")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="files or folders of mamltheory")
    parser.add_argument("--out", type=Path, default=Path("runs/mutants"))
    options = parser.parse_args()
    mutants = drawn(options.count, options.seed, options.modules)
    entries = campaign(mutants, options.out / "outcomes.jsonl", options.jobs)
    text = table(entries, json.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {})
    (options.out / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
