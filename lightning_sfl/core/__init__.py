"""The vocabulary: torch, numpy for random streams and row numbers, and the standard library; nothing of Lightning."""
