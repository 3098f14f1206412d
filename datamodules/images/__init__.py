"""Images: decoding, and features of a frozen encoder kept on disk."""
