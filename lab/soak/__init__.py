"""What a broker must withstand, tried for real: kills, hostile bytes, floods, crowds, histories.

Each kind is a module with one command, run by ``scripts/soak KIND``; none is needed to use
TorMentor, so they are no part of its command line.
"""
