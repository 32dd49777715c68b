"""A kit in which AI components talk through checked, delivered and observed messages."""
