"""Recipes that rebuild the zoo: the pairs, then the host trained on them.

They need the extra `zoo`; the library never imports them.
"""
