"""MAML of fully connected networks by factors: no task has a copy of the weights."""
