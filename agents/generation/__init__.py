"""Text from a policy without learning, and the processes that write it elsewhere."""
