"""What is learned from: files become tokens, rows and batches of numpy arrays. No JAX, no model."""
