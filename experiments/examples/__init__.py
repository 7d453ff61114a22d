"""A score and a search space of one's own, to be copied and changed."""
