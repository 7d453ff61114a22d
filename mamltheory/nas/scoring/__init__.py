"""The scores of a cell: condition number of the kernel, number of linear regions."""
