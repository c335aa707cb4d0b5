"""The serial console: a line, a login and a shell for whoever sits before the tower, a client of it like any other."""
