"""What may be chosen: positions, kinds, costs, structures.

Import from the modules themselves: this file stays empty, so that reading a database imports little.
"""
