"""Questions about the methods, one a file; each says what it asks, and writes what it measured."""

import command_line as command_line  # first of all: it sets the number of threads of LAPACK
