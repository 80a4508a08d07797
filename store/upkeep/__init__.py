"""Backup, restore, and what nobody needs any more."""
