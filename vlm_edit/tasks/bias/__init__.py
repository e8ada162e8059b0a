"""Bias: what a host makes of groups, which features carry it, and edits that lessen it."""
