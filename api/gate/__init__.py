"""Who gets in: keys, scopes, rates, and the trail of what was written."""
