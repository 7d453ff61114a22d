"""Pages of runs: one file of HTML each, which needs neither a network nor other files."""
