"""The client: has rows that it will not show, and trains with them all the same."""
