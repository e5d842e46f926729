"""How messages and packets cross between a client and a server."""
