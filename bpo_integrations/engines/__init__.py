"""What runs a rewriting model: chat messages in, candidates out."""
