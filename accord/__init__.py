"""Ground floor: what broker, curator and client must agree on, and nothing else.

Nothing here imports the other rooms. Everything but ``tor`` and ``circuit`` is pure or touches
only the local disk: time and randomness come in as arguments.
"""
