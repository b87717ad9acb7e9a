"""The command line: one file for each group of commands.

Never here: anything that a running proxy does.
"""
