"""What people do with edits: each task a package of functions for one's own model and data.

``demo`` goes the whole way on the bundled hosts.
"""
