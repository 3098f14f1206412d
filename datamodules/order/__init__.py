"""Order: which samples an epoch takes, which of them make a batch, and which share a row."""
