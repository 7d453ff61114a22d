"""The contact sheet of the embedded images."""

import json

from experiments.data import check
from experiments.data.settings import Glyphs
from tests.experiments.tiny import (
    files,
)


def test_the_contact_sheet_names_its_classes_and_does_not_care_for_the_folder(tmp_path):
    sheets = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        check.draw_glyphs(Glyphs(split="val", classes=3, samples=2, image_size=16, out=folder))
        assert files(folder) == {f"glyphs_val.{end}" for end in ("png", "pdf", "json")}
        sheets.append((folder / "glyphs_val.json").read_bytes())
    assert sheets[0] == sheets[1]
    assert len(json.loads(sheets[0])["data"]["classes"]) == 3
