"""A world of your own on one machine: a private Tor network, a demo, experiments."""
