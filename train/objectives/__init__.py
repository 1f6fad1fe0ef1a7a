"""What is learned: one objective a file."""
