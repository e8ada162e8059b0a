"""Recipes that rebuild the zoo: the pairs, then the host trained on them.

They need the extra `zoo` and are never imported by the rest of the library.
"""
