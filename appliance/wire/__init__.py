"""What the processes say to one another: typed frames over UNIX sockets."""
