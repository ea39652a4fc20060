"""Questions about speed and memory, one a file; each prints the table that answers it."""

import command_line as command_line  # first of all: it sets the number of threads of LAPACK
