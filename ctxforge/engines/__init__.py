"""What each engine makes of a checkpoint: by its reader's rules, kept as data, and by running it where it can."""
