"""The drawing of a cell, number by number."""

from mamltheory.nas.drawing import cells_as_html


def test_a_cell_of_four_vertices_is_drawn_at_the_places_by_hand():
    """Vertices stand 150 apart in the middle of their columns; an arc is 40 high for every vertex that it passes."""
    halo = 'stroke="white" stroke-width="4" paint-order="stroke"'
    arcs = (
        '<path d="M75,150 Q225,-10 375,150" fill="none" stroke="#555"/>'
        f'<text x="225" y="74" {halo}>skip</text>'
        '<path d="M225,150 Q375,-10 525,150" fill="none" stroke="#555"/>'
        f'<text x="375" y="74" {halo}>own&lt;op</text>'
        '<path d="M75,150 Q300,-90 525,150" fill="none" stroke="#555"/>'
        f'<text x="300" y="34" {halo}>conv 3×3</text>'
    )
    vertices = "".join(
        f'<rect x="{x - 24}" y="139" width="48" height="22" rx="4" fill="{fill}" stroke="#555"/>'
        f'<text x="{x}" y="154">{label}</text>'
        for x, fill, label in (
            (75, "#B7DFB0", "cₖ₋₂"),
            (225, "#B7DFB0", "cₖ₋₁"),
            (375, "#AFD3EE", "0"),
            (525, "#AFD3EE", "1"),
        )
    )
    size = 'width="600" height="180" viewBox="0 0 600 180"'
    style = 'font-family="sans-serif" font-size="12" text-anchor="middle"'
    edges = [(0, 2, "skip_connect"), (1, 3, "own<op"), (0, 3, "conv_3x3")]
    assert cells_as_html({"a&b": edges, "none": edges[:1]}).split("</div>")[0] == (
        f'<div><b>a&amp;b cell</b><br><svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{arcs}{vertices}</svg>'
    )
