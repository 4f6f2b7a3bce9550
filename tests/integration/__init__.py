"""Real sockets and files of one process."""
