"""Datasets on their way in: uploads, and the processes that look through them."""
