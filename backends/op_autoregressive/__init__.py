"""What backends with one autoregressive language model share: concept slots in a prompt, low-rank
experts, opening a checkpoint, and which image codes a mask leaves alone. No backend of its own."""
