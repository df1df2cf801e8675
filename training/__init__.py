"""How the bundled model was made: books, synthetic retrieval text, tokenizer, training, measuring."""
