"""Everything worth measuring on a real GPU, in under ten minutes, as one table; what fails is a row, not the end."""
