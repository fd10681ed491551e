"""Text in, batches of tokens out: sources of documents, tokenizers, cached corpora, and batches by (seed, step).

    sources.Source ──documents──► tokenizers.Tokenizer ──► corpus.Corpus (memory-mapped) ──► batches.Batches

`sources`, `tokenizers` and `corpus` are imported by configs and the planner: at import they load no JAX, TFDS, Grain
or TensorFlow. `batches` is for the training loop. Nothing here imports models, the loop, sweeps or `analysis`.
"""
