"""One script a claim."""
