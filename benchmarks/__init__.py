"""Questions about speed and accuracy, one a file; each prints the table that answers it."""
