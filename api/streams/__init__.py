"""What is followed live: events and logs, read once for all who listen."""
