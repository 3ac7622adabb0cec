"""`tf.distribute` strategies that Keras 3 can actually train under.

One idea underlies them all: **inside a Keras step, a replica runs the one-device program over its
rows.** It sees one replica, no loss is scaled, and the replicas' results are combined afterwards as
a mean weighted by rows: gradients before the optimizer reads them, statistics and logs at the end
of the step. For equal fractions and for partial batches alike, that is what one device would have
computed over the global batch.
"""
