"""Examples of a user's score and search space: copy them and change them."""
