"""Small edits of a Python source, each of which should break a test."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

OPERATORS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "*", ast.Mod: "*",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and",
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "sum": "mean", "mean": "sum", "any": "all", "all": "any", "sin": "cos", "cos": "sin",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "zeros": "ones", "minimum": "maximum", "argmin": "argmax",
    "maximum": "minimum", "argmax": "argmin", "square": "abs", "sqrt": "abs", "exp": "expm1", "log": "log1p",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Edit:
    """One replacement in a source, by offsets in its UTF-8 bytes."""

    start: int
    stop: int
    line: int
    before: str
    after: str

    def apply(self, source: str) -> str:
        """The mutated source."""
        data = source.encode()
        return (data[: self.start] + self.after.encode() + data[self.stop :]).decode()


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: no annotations, docstrings, error messages, or conditions of errors.

    ``strict=`` of zip is such a condition; what a dataclass is given is checked by tests/test_architecture.py.
    """
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dataclass":
        return
    yield node
    skipped = {id(getattr(node, name, None)) for name in ("annotation", "returns")}
    if isinstance(node, ast.If) and all(isinstance(statement, ast.Raise) for statement in node.body):
        skipped.add(id(node.test))
    for child in ast.iter_child_nodes(node):
        if id(child) not in skipped:
            yield from _computing(child)


def edits(source: str) -> list[Edit]:
    """All edits of a source, in its order; a few of them leave no program, or a wrong type."""
    data = source.encode()
    starts, found = [0, *accumulate(map(len, data.splitlines(keepends=True)))], set()

    def span(node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def add(start: int, stop: int, after: str) -> None:
        found.add(Edit(start, stop, 1 + data.count(b"\n", 0, start), data[start:stop].decode(), after))

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> None:
        gap = data[span(left)[1] : span(right)[0]]
        sign = gap.strip(b" ()\n")
        if type(operator) in OPERATORS and b"#" not in sign:
            place = span(left)[1] + gap.index(sign)
            add(place, place + len(sign), OPERATORS[type(operator)])

    for node in _computing(ast.parse(source)):
        match node:
            case ast.BinOp(left, operator, right):
                between(left, right, operator)
            case ast.Compare(left, operators, rights):
                for one, operator, two in zip([left, *rights], operators, rights, strict=False):
                    between(one, two, operator)
            case ast.BoolOp(operator, [one, two, *_]):
                between(one, two, operator)
            case ast.UnaryOp(ast.USub() | ast.Not(), operand):
                prefix = data[span(node)[0] : span(operand)[0]].decode()
                add(span(node)[0], span(operand)[0], prefix.replace("not ", "", 1).replace("-", "", 1))
            case ast.Constant(bool() | int() | float() as value):
                other = (
                    not value
                    if isinstance(value, bool)
                    else value + 1
                    if isinstance(value, int)
                    else value * 1.5
                )
                add(*span(node), repr(other or 1.0) if isinstance(value, float) else str(other))
            case ast.IfExp(test):
                add(*span(test), f"not ({data[slice(*span(test))].decode()})")
            case ast.Attribute(attr=name) if name in NAMES:
                add(span(node)[1] - len(name), span(node)[1], NAMES[name])
            case ast.Name(id="min" | "max" | "any" | "all" as name):
                add(*span(node), NAMES[name])
            case ast.Call(args=args, keywords=keywords) if len(args) + len(keywords) > 1:
                for keyword in (each for each in keywords if each.arg != "strict"):
                    start, stop = span(keyword)
                    comma = data[stop : span(node)[1]].startswith(b", ")
                    add(start, stop + 2 * comma, "" if keyword.arg else data[start:stop].decode())
            case ast.AugAssign() | ast.Expr(ast.Call()):
                add(*span(node), "pass")
    return sorted(edit for edit in found if edit.before != edit.after)
