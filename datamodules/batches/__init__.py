"""Batches: samples loaded by workers and put together as the model takes them; samples that cannot be used."""
