"""Train, measure and export prompt rewriters. Needs the extra `train`."""
