"""Side-by-side measurements against peers; each module writes the numbers that the documentation quotes."""
