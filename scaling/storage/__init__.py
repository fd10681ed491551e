"""Files in folders and buckets: created where absent, replaced whole, retried; caches and checkpoint directories."""
