"""`tfaccel.monitor`: where the time of a `fit` goes, for each worker and each window of steps."""
