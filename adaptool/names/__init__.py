"""Module paths: patterns, renames between libraries, and the resolver from name to tensor."""
