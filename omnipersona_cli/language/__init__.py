"""English that is grammar: mentions, facts, references, questions, instructions; no model."""
