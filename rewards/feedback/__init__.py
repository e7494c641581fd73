"""Feedback from people: collected on a web page, stored encrypted, checked for agreement, exported as preferences."""
