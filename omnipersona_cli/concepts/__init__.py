"""What is kept of a concept: its mentions in text, its pack, and this user's library of packs."""
