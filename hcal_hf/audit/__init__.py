"""Finds labels that are missing from annotated documents, and labels that look wrong."""
