"""What the quantities of metrics.jsonl mean, one line each, in the order of their panels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A panel's heading, its explanation, and a value to compare with."""

    label: str
    meaning: str
    reference: float | None = None


TRAINING = {
    "loss": Quantity("loss", "What is minimised. It falls in good runs and in dead ones."),
    "learning_rate": Quantity("learning rate", "As scheduled."),
    "weight_decay": Quantity("weight decay", "As scheduled, of the parameters that decay."),
    "grad_norm": Quantity("gradient norm", "Before clipping."),
    "prediction_std": Quantity(
        "prediction std", "Spread of the predictor's output; near 0 it says the same of all."
    ),
    "steps_per_second": Quantity("steps per second", "Wall clock, with everything between steps."),
    "data_wait": Quantity("waiting for data", "Share of the time in which no batch was there."),
}

HEALTH = {
    "unexplained": Quantity(
        "unexplained",
        "Share of the target's variance the predictor leaves unexplained. At 1 it knows no more "
        "than the mean at each position.",
        1.0,
    ),
    "signal": Quantity(
        "signal",
        "Variance of the features that depends on the sample at all. An early fall is normal, "
        "a fall to nothing is collapse.",
    ),
    "rank": Quantity(
        "rank (centred)", "How many directions the features use, their mean taken out."
    ),
    "snr": Quantity(
        "signal to noise",
        "Variance between samples over variance between views of one sample. Higher is better.",
    ),
    "share_position": Quantity("share of position", "Variance that only says which token it is."),
    "share_sample": Quantity("share of sample", "Variance that says which sample, at all tokens."),
    "share_interaction": Quantity(
        "share of interaction", "Variance that says which sample and where: local content."
    ),
    "std": Quantity(
        "std", "Mean standard deviation of pooled features. Falls three- to sixfold in good runs."
    ),
    "token_rank": Quantity("rank of tokens", "Directions that single tokens use."),
    "rankme": Quantity(
        "RankMe", "Rank without centring. Highest before training: shown, not used for a choice."
    ),
    "lidar": Quantity(
        "LiDAR", "Rank of what tells samples apart. Blind to collapse: shown, not used."
    ),
    "lidar_relative": Quantity("LiDAR (relative)", "LiDAR with its ridge scaled to the features."),
    "lidar_trace": Quantity(
        "LiDAR trace", "Sum of LiDAR's eigenvalues; behaves as signal to noise."
    ),
    "alignment_relative": Quantity(
        "alignment", "Distance of two views of a sample; 1 for views that share nothing.", 1.0
    ),
    "uniformity": Quantity(
        "uniformity", "How evenly samples cover the sphere; lower is more even."
    ),
    "alpha": Quantity("alpha", "How fast the spectrum decays; larger is steeper."),
    "dead_dims": Quantity("dead dimensions", "Share of dimensions that never vary."),
    "effective_rank_sv": Quantity("effective rank", "Of the singular values, centred."),
    "effective_rank_ev": Quantity("effective rank (eigenvalues)", "Of their squares: stricter."),
    "participation": Quantity("participation ratio", "Dimensions that share the variance."),
    "stable_rank": Quantity("stable rank", "All variance over that of the first direction."),
    "share_total": Quantity("total variance", "Of all tokens around their common mean."),
    "alignment": Quantity("alignment (absolute)", "Squared distance of two views of a sample."),
}

ORDER = {
    name: index for index, name in enumerate([*TRAINING, *(f"health/{name}" for name in HEALTH)])
}
