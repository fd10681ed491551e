"""Public curves y(x), of one quantity each: no table of parameters and tokens."""

from analysis.datasets import tidying
from analysis.datasets.entry import NATS, NO_FLOPS, NO_PARAMS, NONE_STATED, SPLIT, Entry

CLARK_SETTINGS = (
    "num_experts", "d_model", "num_blocks", "num_heads", "kqv_size", "flop_increase", "k", "router_type", "seed",
    "routing_frequency", "total_parameter_count", "dense_parameter_count", "flops_per_step", "model_size_label",
)  # fmt: skip

ENTRIES = (
    Entry(
        name="alabdulmohsin2022",
        paper="Alabdulmohsin, Neyshabur, Zhai 2022, Revisiting Neural Scaling Laws in Language and Vision, "
        "arXiv 2209.06640 (its language tasks)",
        repository="google-research/google-research",
        commit="9853680c781781bd8d3de20aa61c7373ce059913",
        path="revisiting_neural_scaling_laws/data/benchmark.lang.csv",
        licence="CC BY 4.0",
        file="alabdulmohsin2022_language.csv",
        rows=712,
        columns={
            "domain": "NMT (translation), LM (language model) or BB (BIG-Bench)",
            "task": "what is measured; with domain and model it names one of 20 curves",
            "model": "architecture or size",
            "params_approx": "parameters, roughly",
            "seen": "examples (NMT) or tokens (LM, BB) seen",
            "loss": "error rate, log-perplexity or the task's metric",
            "split": SPLIT,
        },
        params_convention="params_approx: rounded, from the README",
        flops_convention=NO_FLOPS,
        sha256="63c346db00a66b692e1ea9a0f71a2f2b267e55f74be5b863a92e199dffbf0983",
        tidy=tidying.alabdulmohsin,
    ),
    Entry(
        name="clark2022_curves",
        paper="Clark et al. 2022, Unified Scaling Laws for Routed Language Models, arXiv 2202.01169",
        repository="google-deepmind/scaling_laws_for_routing",
        commit="42da0c392b127df2c01fa7b705f72396050d05e5",
        path="data/curves.csv.gz",
        licence="CC BY 4.0 (software: Apache-2.0)",
        file="raw/curves.csv.gz",
        rows=5799,
        columns={
            "hyper_id": "number of the run, as in clark2022; with one of the losses it names a curve",
            "step": "training step, from 0; 250,000 are 130e9 tokens",
            "loss_c4": "nats per token on C4",
            "loss_curation_corpus": "nats per token on Curation Corpus",
            "loss_lambada": "nats per token on LAMBADA",
            "loss_pile": "nats per token on the Pile's Europarl",
            "loss_validation": NATS,
            "loss_wikitext103": "nats per token on WikiText-103",
            **dict.fromkeys(CLARK_SETTINGS, "in clark2022, once a run"),
        },
        renames={"hyper_id": "run", "loss_validation": "loss", "loss_pile": "loss_pile_europarl"},
        dropped=CLARK_SETTINGS,
        params_convention=NO_PARAMS,
        flops_convention=NO_FLOPS,
        sha256="c03e7531add85e594f368d33bac4a0220280be858a7ed12d147cf73af6a3819f",
        tidy=tidying.gzipped,
    ),
    Entry(
        name="nakkiran2020",
        paper="Nakkiran et al. 2020, Deep Double Descent, arXiv 1912.02292",
        repository="DongWooLee-Eli/nslpfn",
        commit="10a5a60",
        path="data/dd_data.pkl",
        licence="MIT (of the repository that holds the copy)",
        file="nakkiran2020_double_descent.csv",
        rows=927,
        columns={
            "series": "name of the curve, one of 16",
            "x_kind": "what x is: model_size, embedding_dimension or sample_size",
            "y_kind": "what y is: test_error (0 to 1) or test_loss",
            "x": "size",
            "y": "error or loss; not monotone by design",
        },
        params_convention=NO_PARAMS,
        flops_convention=NO_FLOPS,
    ),
    Entry(
        name="caballero2022",
        paper="Caballero et al. 2022, Broken Neural Scaling Laws, arXiv 2210.14891, Fig. 4 (left)",
        repository="ethancaballero/broken_neural_scaling_laws",
        commit="0d9fb55d51d73d92ba7a950f856712c3ec9db352",
        path="fit_bnsl_and_extrapolate__4_digit_addition__dataset_size_x-axis.py",
        licence=NONE_STATED,
        file="caballero2022_bnsl_addition.csv",
        rows=17,
        columns={
            "train_examples": "training examples of 4-digit addition",
            "loss": "test cross-entropy, nats",
            "split": SPLIT,
        },
        params_convention=NO_PARAMS,
        flops_convention=NO_FLOPS,
    ),
)
