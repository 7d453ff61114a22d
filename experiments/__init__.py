"""The paper's experiments as commands: ``python -m experiments --help``. No mathematics lives here."""
