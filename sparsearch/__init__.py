"""sparsearch."""
