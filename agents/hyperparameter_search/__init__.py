"""`textrl tune`: the search for good settings of an algorithm."""
