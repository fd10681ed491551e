"""What `scaling doctor` looks at, a module a subject. Each check returns findings and prints nothing.

Checks may import any package of `scaling` but the command line, which alone imports them. None imports JAX: it is asked
in a process of its own, which may hang or die.
"""
