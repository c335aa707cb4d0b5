"""What must survive, encrypted at rest: the database, its migrations, a file for each subject in it."""
