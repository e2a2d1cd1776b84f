"""Whether calls that overlapped have a sequential explanation: the search and its models."""
