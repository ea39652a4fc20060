"""Questions about speed, one a file; each prints ratios measured side by side in one run."""
