"""Where the variables of a model lie: the facts, and pictures of them."""
