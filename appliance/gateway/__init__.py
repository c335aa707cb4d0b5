"""The client plane: REST, server-sent events and WebSocket. Unprivileged; any number of processes on one socket."""
