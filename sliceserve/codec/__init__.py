"""Hidden states to packets and back."""
