"""What updates cost: long vocabularies, prompts that texts share, and padding."""
