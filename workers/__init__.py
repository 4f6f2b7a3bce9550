"""Make slices: compile the chain, decode, transform, send. Never imports torch."""
