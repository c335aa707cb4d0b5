"""The control plane: life cycle, worker care, leases, the control socket. Never imports an engine or a database."""
