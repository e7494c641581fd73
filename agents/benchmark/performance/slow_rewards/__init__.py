"""What it costs that texts are scored by a slow server."""
