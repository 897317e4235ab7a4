"""What each command does, from a request to files: one file a command."""
