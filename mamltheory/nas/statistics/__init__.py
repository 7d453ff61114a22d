"""What repeated scores say: reliability, repeatability, rank correlation."""
