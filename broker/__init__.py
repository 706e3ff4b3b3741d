"""The broker: a short-lived, honest-but-curious process behind an onion address."""
