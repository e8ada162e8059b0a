"""Adapters: what each family of hosts calls its sites. Declarations only."""
