"""Reliability of scores between repeats, and their rank correlation with accuracy."""
