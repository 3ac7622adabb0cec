"""Plans before anything is rented: does a model fit, how should it be split, how fast is a step."""
