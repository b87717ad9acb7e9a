"""The command line: one file for each group of commands, which `main` joins.

Never here: anything that a running proxy does.
"""
