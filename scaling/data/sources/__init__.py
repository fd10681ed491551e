"""How each kind of source is read: a module a kind, found by `registry` when a source is first read."""
