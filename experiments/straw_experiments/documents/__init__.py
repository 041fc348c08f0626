"""Documents that write weights of a language model: a reader of contexts, trained and tested."""
