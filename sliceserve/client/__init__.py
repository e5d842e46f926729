"""The device's side: head engine, session and SDK."""
