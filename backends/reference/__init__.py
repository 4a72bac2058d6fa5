"""The definition of every operation in plain jnp, in float32 or float64 as asked: the oracle and the last resort."""
