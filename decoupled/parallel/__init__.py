"""A chain on many devices: stages, the pipeline, many processes."""
