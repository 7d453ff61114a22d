"""The fast routines beside what a user would pick instead: CPU time, memory and exactness, in one run."""
