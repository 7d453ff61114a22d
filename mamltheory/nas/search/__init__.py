"""Algorithm 1: the search by pruning."""
