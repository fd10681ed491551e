"""A sweep's Python file, as workers read it: "quotes", $(variables) and accents é stay as they are."""
