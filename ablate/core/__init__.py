"""What every layer uses and which uses no layer: the registry and its typed fields."""
