"""What holds at finite width: the bounds of Theorem 3, the constant of Lemma 1, and powers of the width, fitted."""
