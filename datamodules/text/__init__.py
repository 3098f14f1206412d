"""Text: the tokenizer, chat templates, and conversations as token ids and labels."""
