"""Receive batches, learn from them, tell what happened. Never imports albumentations or OpenCV."""
