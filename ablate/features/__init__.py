"""Features of a frozen encoder, computed once: whether it pays, and filling the cache."""
