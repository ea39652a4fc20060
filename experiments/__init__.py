"""Questions about the methods, one a file; each says what it asks, and writes what it measured."""
