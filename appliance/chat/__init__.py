"""The domain: personas, conversations, replies. Free of HTTP and of processes: what writes text is a Protocol."""
