"""The data path: scope -> target -> endpoint -> bytes."""
