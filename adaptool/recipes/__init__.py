"""Recipes: steps in YAML, read and checked as a whole before the first of them runs."""
