"""Help says what a flag that is left out stands for; booleans have one form; shells complete the commands."""

import dataclasses
import re
import subprocess

import pytest

from experiments import __main__ as shell
from experiments.commands import COMMANDS
from experiments.help import field_docs, plain_booleans
from experiments.search.settings import Search
from mamltheory.nas.protocols import METHODS, PROTOCOLS


def shown(capsys, *arguments):
    """The text of ``--help``, without frames and line breaks."""
    with pytest.raises(SystemExit) as end:
        shell.main([*arguments, "--help"])
    assert end.value.code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_every_setting_that_protocols_decide_shows_its_value_and_the_protocols_that_differ(capsys):
    text = shown(capsys, "search")
    assert "None" not in text
    assert "--metric {condition,harmonic} " in text
    assert "(default: condition; protocol stable: harmonic)" in text
    assert "(default: 3; protocol stable: 12)" in text
    assert (
        "--regions, --no-regions Add the ranks of the number of linear regions. (default: yes; protocol stable: no"
        in text
    )
    assert "(default: maml; method te-nas: ntk)" in text
    assert "Halving: stacked cells while searching. (default: that of --cells)" in text


def test_the_values_are_those_of_the_settings_by_every_protocol_and_method():
    for protocol in PROTOCOLS:
        for method in METHODS:
            settings = Search(protocol=protocol, method=method)
            for name in PROTOCOLS[protocol]:
                first = settings.default_words()[name].split(";")[0]
                assert first == {True: "yes", False: "no"}.get(getattr(settings.resolved(), name), first)
                assert first in ("yes", "no") or first == str(getattr(settings.resolved(), name))


def test_a_preset_shows_what_it_gives(capsys):
    text = shown(capsys, "search", "--preset", "glyph-smoke")
    assert "Tasks per kernel. (default: 8)" in text
    assert "(default: harmonic; protocol paper, released: condition; method te-nas: condition)" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_shows_none_as_a_default_and_all_fields_are_explained(name, capsys):
    text = shown(capsys, name)
    assert "default: None" not in text
    assert "{None}" not in text
    assert "None" not in text
    assert not re.search(r"default: (True|False|\))", text)
    kind = COMMANDS[name].settings
    assert set(field_docs(kind)) >= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--regions", {"regions": True}),
        ("--no-regions --seed 3", {"regions": False, "seed": 3}),
        ("--regions False", {"regions": False}),
        ("--regions=True --two_inputs", {"regions": True, "two_inputs": True}),
        ("--regions None", {"regions": None}),
        ("--verbose True", {"verbose": True}),
        ("--verbose --no-verbose", {"verbose": False}),
    ],
)
def test_booleans_are_given_by_a_flag_or_its_negation_or_a_word(flags, expected):
    settings = shell.resolve("search", flags.split())
    assert {name: getattr(settings, name) for name in expected} == expected


def test_what_is_no_boolean_stays_as_it_is():
    words = ["--out", "--no", "--seed", "1", "--nothing", "--rungs", "4", "2"]
    assert plain_booleans(Search, words) == words


def test_a_record_and_a_preset_are_not_given_together(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    for place in (tmp_path, tmp_path / "run.json"):
        assert shell.main(["search", "--preset", "glyph-smoke", "--config", str(place)]) == 2
        assert "leave out one of them" in capsys.readouterr().err
    (tmp_path / "mine.json").write_text('{"seed": 4}')
    both = shell.resolve("search", ["--preset", "glyph-smoke", "--config", str(tmp_path / "mine.json")])
    assert (both.seed, both.tasks) == (4, 8)


def test_a_shell_completes_commands_flags_and_presets(capsys):
    assert shell.main(["--tyro-print-completion", "bash"]) == 0
    script = (
        capsys.readouterr().out
        + """
complete -p mamltheory > /dev/null
function=$(complete -p mamltheory | sed 's/.*-F \\([^ ]*\\).*/\\1/')
for line in "sea" "search --no-reg" "search --preset glyph-sm"; do
    COMP_WORDS=(mamltheory $line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); $function; echo "${COMPREPLY[@]}"
done
"""
    )
    found = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["search", "--no-regions", "glyph-smoke"]


def test_another_shell_is_refused_in_a_line(capsys):
    assert shell.main(["--tyro-print-completion", "cmd"]) == 2
    assert "expected one of bash, zsh, tcsh, fish" in capsys.readouterr().err
