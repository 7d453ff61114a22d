"""Cells, their scores at initialisation, and the training-free cell search of Section 5 (MetaNTK-NAS)."""
