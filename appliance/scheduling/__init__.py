"""Who gets a place on which worker, and when."""
