"""Rooms of the search: spaces, narrowing, the ledger, selection, Ray Tune."""
