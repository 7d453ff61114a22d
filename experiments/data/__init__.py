"""Data sets: their settings, reading, checks."""
