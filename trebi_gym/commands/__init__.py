"""What the shell types: one file a group of commands."""
