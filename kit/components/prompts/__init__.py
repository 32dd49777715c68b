"""Prompts: immutable versions, labels that move, rendering within bounds, contexts within a token budget."""
