"""One folder per operation: reference.py says what it computes, the others do it fast."""
