"""How each kind of tokenizer encodes: a module a kind, found by `registry` when it is first used."""
