"""Who is asking, and what they may do. Stands above the storage, which knows only rows."""
