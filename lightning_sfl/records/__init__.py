"""Records: what a run leaves behind, written and read without torch."""
