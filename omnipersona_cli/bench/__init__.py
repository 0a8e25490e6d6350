"""`op bench`: learn every concept of a data set, run its items, score them, and print the table."""
