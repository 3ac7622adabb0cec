"""The placement of a model's variables, as data and as pictures."""
