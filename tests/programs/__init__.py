"""Programs as users write them, each under plain Keras and under every strategy."""
