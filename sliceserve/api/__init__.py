"""The server's face: OpenAI endpoints and the split endpoint."""
