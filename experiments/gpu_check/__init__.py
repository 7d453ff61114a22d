"""``gpu-check``: what a machine's GPU computes, and how fast, in one command."""
