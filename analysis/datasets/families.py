"""Public tables that come several to a paper: Porian et al., Brandfonbrener et al., and a benchmark of designs."""

import functools

from analysis.datasets import tidying
from analysis.datasets.entry import NATS, NO_FLOPS, NONE_STATED, SIX_ND, Entry

PORIAN = functools.partial(
    Entry,
    paper="Porian et al. 2024, Resolving Discrepancies in Compute-Optimal Scaling of Language Models, arXiv 2406.19146",
    repository="formll/resolving-scaling-law-discrepancies",
    commit="0dc60d9",
    path="data/summary_df*.pickle.xz",
    licence="MIT-style (LICENSE)",
    params_convention=tidying.By(
        "param_count",
        {
            "standard": "one vocabulary matrix included (standard)",
            "kaplan": "embeddings excluded (kaplan)",
            "attention": "effective parameters that include the attention FLOPs (attention)",
        },
    ),
    flops_convention="6 · params · tokens, with params by param_count",
)
PORIAN_SETTINGS = {
    "dataset": "training set: rw (RefinedWeb) or owt2 (OpenWebText2)",
    "hparams": "base or tuned hyper-parameters",
    "warmup": "long or short warm-up",
    "decay": "learning-rate schedule: kaplan, chinchilla or const",
    "param_count": "how parameters are counted",
    "loss_kind": "train or val",
}
BRANDFONBRENER = functools.partial(
    Entry,
    paper="Brandfonbrener et al. 2024, Loss-to-Loss Prediction: Scaling Laws for All Datasets, arXiv 2411.12925 "
    "(two of its six training sets)",
    repository="KempnerInstitute/loss-to-loss-notebooks",
    commit="457ce81",
    licence=NONE_STATED,
)
BRANDFONBRENER_LOSSES = (
    "c4", "fineweb_100b", "fineweb_1T", "fineweb_edu_100b", "proof_pile_2", "slimpajama", "smollm", "starcoder",
    "arc_challenge", "arc_easy", "boolq", "hellaswag", "openbook_qa", "piqa", "sciq", "winogrande",
)  # fmt: skip
SCALEBENCH = functools.partial(
    Entry,
    repository="PlanarG/active-sl",
    licence="CC BY 4.0",
    tidy=tidying.parquet,
    dropped=("group",),
)
SCALEBENCH_PAPER = "arXiv 2604.22753, training split of its benchmark; the measurements are from "
GROUP = {"group": "the same in every row"}

ENTRIES = (
    PORIAN(
        name="porian2024",
        file="porian2024_isoflop.csv",
        rows=1745,
        columns=PORIAN_SETTINGS
        | {
            "flops": "FLOP budget of the group",
            "params": "parameters, by param_count",
            "tokens": "training tokens seen",
            "loss": "nats per token, by loss_kind",
        },
    ),
    PORIAN(
        name="porian2024_optimal",
        file="porian2024_optimal_points.csv",
        rows=173,
        columns=PORIAN_SETTINGS
        | {
            "flops": "FLOP budget",
            "params_opt": "the authors' optimal parameters at this budget, by param_count",
            "tokens_opt": "the tokens that go with them",
            "loss_opt": "the loss there, nats per token",
            "log_params_opt_std": "bootstrap standard deviation of log params",
            "log_tokens_opt_std": "bootstrap standard deviation of log tokens",
            "loss_opt_std": "bootstrap standard deviation of the loss",
        },
        renames={"params_opt": "params", "tokens_opt": "tokens", "loss_opt": "loss"},
    ),
    PORIAN(
        name="porian2024_exponents",
        file="porian2024_published_exponents.csv",
        rows=15,
        columns=PORIAN_SETTINGS
        | {
            "a_weighted": "exponent of optimal params in FLOPs, weighted by the optima's errors",
            "coef_weighted": "coefficient of that law",
            "r2_weighted": "R² of that fit",
            "a_unweighted": "exponent without weights",
            "coef_unweighted": "coefficient without weights",
            "r2_unweighted": "R² without weights",
            "b_tokens_weighted": "exponent of optimal tokens, weighted",
        },
    ),
    BRANDFONBRENER(
        name="brandfonbrener2024",
        path="data/sweep.csv and data/extrapolation.csv",
        file="brandfonbrener2024_two_sets.csv",
        rows=175,
        columns={
            "split": "fit, or extrapolate: the run at 1e21 FLOPs, one a training set",
            "train_set": "training set",
            "n_layers": "layers",
            "d_model": "width",
            "params": "all parameters",
            "tokens": "training tokens seen",
            "flops": "FLOP budget",
            "steps": "optimizer steps",
            "loss_own_val": "validation loss on the training set's own distribution, nats per token",
            "loss_train_last": "last training loss, nats per token",
        }
        | {f"loss_{name}": f"loss on {name}, nats per token" for name in BRANDFONBRENER_LOSSES}
        | {
            "olmo_suite_ce_loss": "mean cross-entropy of the OLMo tasks",
            "olmo_suite_acc": "mean accuracy of the OLMo tasks",
            "mmlu_suite_ce_loss": "mean cross-entropy of MMLU",
            "mmlu_suite_acc": "mean accuracy of MMLU",
        },
        renames={"loss_own_val": "loss"},
        params_convention="embedding and output matrices included",
        flops_convention="6 · params · tokens, the budget of the run",
    ),
    BRANDFONBRENER(
        name="brandfonbrener2024_fits",
        path="data/opt_params_data.csv",
        file="brandfonbrener2024_published_fits_two_sets.csv",
        rows=76,
        columns={
            "train_set": "training set",
            "target": "column of brandfonbrener2024 that was fitted, by its name in the source",
            "law": "chinchilla or kaplan",
            "E": "irreducible loss, nats per token",
            "A": "coefficient of parameters",
            "B": "coefficient of tokens",
            "alpha": "exponent of parameters",
            "beta": "exponent of tokens",
            "huber_objective": "the authors' objective at the fit",
            "r_squared": "R² of the fit",
            "published_prediction_1e21": "the fit's loss at 1e21 FLOPs",
            "measured_1e21": "the measured loss there",
        },
        params_convention="embedding and output matrices included",
        flops_convention=SIX_ND,
    ),
    SCALEBENCH(
        name="scalebench_data_constrained",
        paper=SCALEBENCH_PAPER + "Muennighoff et al. 2023",
        commit="cb26daa6a5efb48f77407e6ef38d9c451232746c",
        path="benchmark/dataset/data_constrained_scaling_law/train-00000-of-00001.parquet",
        file="scalebench/data_constrained_train.parquet",
        rows=161,
        columns=GROUP
        | {
            "unique_tokens": "distinct training tokens",
            "params": "model parameters",
            "tokens": "training tokens seen, repeats included",
            "loss": NATS,
        },
        params_convention="as Muennighoff et al. count; with or without embeddings is not stated",
        flops_convention=NO_FLOPS,
        sha256="d0e6f059e657c7476f8f2636110e391d086c78bd826a50c4cc62f06e73c7b020",
    ),
    SCALEBENCH(
        name="scalebench_farseer",
        paper=SCALEBENCH_PAPER + "Farseer",
        commit="4fea0f4de5f067541c5a45f9c3d222c14dd8f071",
        path="benchmark/dataset/farseer_scaling_law/train-00000-of-00001.parquet",
        file="scalebench/farseer_train.parquet",
        rows=404,
        columns=GROUP
        | {"N": "model size", "D": "training tokens", "loss": "as the source gives it, unit not stated: 0.46 to 0.71"},
        renames={"N": "params", "D": "tokens"},
        params_convention="as the benchmark gives them; with or without embeddings is not stated",
        flops_convention=NO_FLOPS,
        sha256="98c4167b4b111814bcf8450bef0ec975239da067dd4f42ef6b71f4c1667705bc",
    ),
    SCALEBENCH(
        name="scalebench_moe",
        paper=SCALEBENCH_PAPER + "Clark et al. 2022",
        commit="cb26daa6a5efb48f77407e6ef38d9c451232746c",
        path="benchmark/dataset/moe_scaling_law/train-00000-of-00001.parquet",
        file="scalebench/moe_train.parquet",
        rows=193,
        columns=GROUP
        | {
            "num_experts": "experts in a routed layer",
            "dense_parameter_count": "parameters that a token meets",
            "loss_validation": NATS,
        },
        renames={"num_experts": "experts", "dense_parameter_count": "params_active", "loss_validation": "loss"},
        params_convention="params_active: seen by one token, without embeddings",
        flops_convention=NO_FLOPS,
        sha256="fad8831bc25efb889e0581d5746697b979712ca86f3b4e8002760bde554ec7b6",
    ),
    SCALEBENCH(
        name="scalebench_vocab",
        paper=SCALEBENCH_PAPER + "Tao et al. 2024",
        commit="cb26daa6a5efb48f77407e6ef38d9c451232746c",
        path="benchmark/dataset/vocab_scaling_law/train-00000-of-00001.parquet",
        file="scalebench/vocab_train.parquet",
        rows=1080,
        columns=GROUP
        | {
            "non_vocab_parameters": "parameters without vocabulary matrices",
            "vocab_size": "tokens in the vocabulary",
            "num_characters": "training characters seen",
            "unigram_normalized_loss": "nats per token less those of a unigram model: negative",
        },
        renames={
            "non_vocab_parameters": "params_non_vocab",
            "vocab_size": "vocabulary_size",
            "num_characters": "characters",
            "unigram_normalized_loss": "loss",
        },
        params_convention="params_non_vocab: without the vocabulary's matrices",
        flops_convention=NO_FLOPS,
        sha256="959415949e790c46d30b445536d2a364d804c7c942398320dd0677ed3ecdf633",
    ),
)
