"""Readers for recordings and captures: the Source that needs no kernel."""
