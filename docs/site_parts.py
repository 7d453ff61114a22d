"""What Sphinx lacks for this site: formulas as MathML, links from private to public names, the figures, "Eq."."""

import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import autosummary
from sphinx.writers.html5 import HTML5Translator

import mamltheory
import mamltheory.fewshot
import mamltheory.nas

PACKAGES = (mamltheory, mamltheory.fewshot, mamltheory.nas)
PUBLIC = {
    f"{package.__name__}.{place}.{name}": f"{package.__name__}.{name}"
    for package in PACKAGES
    for name, place in package._PLACES.items()
}
"""The public name of everything that docstrings call by the module in which it is defined."""


def inline_formula(page: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    page.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block_formula(page: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula between lines."""
    page.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def public_name(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, text: nodes.Node
) -> nodes.Node | None:
    """Resolve a reference by the module of a public name, or by a name alone where one entry has it."""
    domain, target = environment.domains.python_domain, node.get("reftarget", "")
    same = [entry for entry in domain.objects if entry.endswith(f".{target}")]
    found = PUBLIC.get(target) or (same[0] if len(same) == 1 else None)
    if found is None:
        return None
    return domain.resolve_xref(environment, node["refdoc"], app.builder, "obj", found, node, text)


def copy_figures(app: Sphinx, error: Exception | None) -> None:
    """Copy the pictures that documents show by HTML, and lead from the root of the site to its front page."""
    if error is not None or app.builder.format != "html":
        return
    figures = Path(app.srcdir, "figures")
    for picture in (*figures.rglob("*.png"), *figures.glob("*.html")):
        target = Path(app.outdir, "figures", picture.relative_to(figures))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)
    page = '<meta http-equiv="refresh" content="0; url=docs/index.html"><title>mamltheory</title>'
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register them with Sphinx."""
    autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.", "Eqs.")  # no ends of sentences
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("missing-reference", public_name)
    app.connect("build-finished", copy_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
