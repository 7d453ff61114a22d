"""The theory checked numerically: one sweep over widths and seeds, and a figure for each claim."""
