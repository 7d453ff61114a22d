from mamltheory.ledger import Outcome, reading_order, render


def test_a_statement_holds_only_if_every_test_that_names_it_passed():
    text = render(
        [Outcome("Eq. (2)", "a", True), Outcome("Eq. (2)", "b", False), Outcome("Eq. (1)", "a", True)]
    )
    rows = text.splitlines()[-2:]
    assert rows == ["| Eq. (1) | holds | `a` | 1 |", "| Eq. (2) | FAILS in 1 | `a`<br>`b` | 2 |"]
    text = render([Outcome("Eq. (3)", "c", True, True), Outcome("Eq. (3)", "d", True)])
    assert text.splitlines()[-1] == "| Eq. (3) | holds as corrected | `c`<br>`d` | 2 |"


def test_a_failure_outweighs_a_correction():
    text = render([Outcome("Eq. (3)", "c", False, True), Outcome("Eq. (3)", "d", True)])
    assert "| Eq. (3) | FAILS in 1 |" in text


def test_statements_come_in_the_order_of_their_numbers():
    names = ["Eq. (112)", "Theorem 3", "Eq. (11)", "Def. 2", "something else", "Eq. (8)"]
    assert sorted(names, key=reading_order) == [
        "Def. 2",
        "Eq. (8)",
        "Eq. (11)",
        "Eq. (112)",
        "Theorem 3",
        "something else",
    ]
