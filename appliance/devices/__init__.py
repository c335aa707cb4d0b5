"""Edge TPUs: from what the kernel shows to one table of trays and TPUs."""
