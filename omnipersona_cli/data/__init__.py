"""Photos in, lessons out: what a person gives, and what is taught from it."""
