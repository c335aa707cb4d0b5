"""The `coral-reef` command: one small file per subcommand."""
