"""The embedded model: its adapters, and the code that makes them runnable."""
