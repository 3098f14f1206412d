"""A run on disk: its settings, its identity, the files in its folder, its weights and its provenance."""
