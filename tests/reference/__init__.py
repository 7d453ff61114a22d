"""Slow, obviously right twins of the fast routines, written from the paper's formulas."""
