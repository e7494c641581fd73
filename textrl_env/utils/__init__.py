"""Files that appear whole or not at all, the cache folder, and suggestions for misspelt names."""
