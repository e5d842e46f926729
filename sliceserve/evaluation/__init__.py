"""What a codec costs the answer: quality of text, accuracy on tasks, a model for harnesses."""
