"""Rooms of one training run: augmentation, model, loader, metrics, the loop."""
