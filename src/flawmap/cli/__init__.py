"""The command line: one file a command; what they do is the Python interface's."""
