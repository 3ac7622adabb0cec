"""Plans before renting machines: does a model fit, how to split it, how fast is a step."""
