"""Operations as fast jnp, and JAX's own fused calls where they serve."""
