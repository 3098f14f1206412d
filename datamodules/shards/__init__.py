"""Shards: tar files of samples, made, described, checked and read at random, from this disk or from a server."""
