"""The fast routines against the alternatives: CPU time, memory and exactness."""
