"""The writer of a text: transformer policies and the algorithms that train them."""
