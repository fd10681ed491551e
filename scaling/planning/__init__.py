"""From a sweep to its runs and what each will cost, before anything is trained. No JAX here."""
