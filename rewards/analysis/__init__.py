"""What is wrong with a reward, and whom it serves."""
