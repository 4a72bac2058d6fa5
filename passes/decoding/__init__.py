"""What the decoding form of a program is made of: proofs that masks are causal, bodies, index equations, states."""
