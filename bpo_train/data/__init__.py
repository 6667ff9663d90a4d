"""From preferences to training data: sources, filters, annotation, the context put back, statistics and the card."""
