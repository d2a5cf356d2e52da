"""What a study has learned, and what would change its answer."""
