"""The search and its comparison of protocols."""
