"""From the supernet to an accuracy: search a cell, train its network, evaluate it on few-shot tasks."""
