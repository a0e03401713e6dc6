"""The theory in pictures and tables: what follows from the formulas alone."""

from __future__ import annotations

import numpy as np

from jepa_core.report import Table
from jepa_core.run import Run
from jepa_linear.dynamics import trajectory
from jepa_linear.figures import save
from jepa_linear.limits import deep_ratio, inversion_boundary, suppression_depth
from jepa_linear.panels import Curve, depth_figure, learning_figure, ratio_figure
from jepa_linear.parameters import Objective
from jepa_linear.times import Status, critical_time, fixed_point, status

OBJECTIVES: tuple[Objective, Objective] = ("jepa", "mae")
NAMES = {"jepa": "JEPA", "mae": "MAE"}

# Three families of modes: (lambda, rho) of each mode.
FAMILIES = (
    ("rho = 1, lambda varies", ((1.0, 1.0), (0.7, 1.0), (0.5, 1.0))),
    ("lambda = 1, rho varies", ((1.0, 0.9), (1.0, 0.6), (1.0, 0.3))),
    ("larger lambda, smaller rho", ((0.95, 0.9), (0.97, 0.6), (1.0, 0.3))),
)
LAYER_SCALE = 0.1

# lambda, rho of the reference table.
REFERENCE = ((1.0, 1.0), (1.0, 0.5), (0.5, 0.9), (2.0, 1.5), (3.0, 0.25))
REFERENCE_DEPTHS = (1, 2, 3, 5, 8)

SWEPT_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16)
SWEPT_SCALES = (0.05, 0.1, 0.3)
SWEPT_EPS = 1e-4

_INVERTED = (
    "Between the two numbers the orders are inverted: the JEPA learns the clean mode B first, "
    "reconstruction the noisy mode A. From two layers on A then has the larger covariance or as "
    "good as; with one layer both objectives favour the noisy mode."
)


def reference_table() -> Table:
    """Critical times and plateaus of five modes at five depths, a0 = 0.1, p = 0.5."""
    rows: list[list[str | float | int | None]] = []
    for depth in REFERENCE_DEPTHS:
        for lam, rho in REFERENCE:
            row: list[str | float | int | None] = [depth, f"{lam:g}", f"{rho:g}"]
            for objective in OBJECTIVES:
                time = critical_time(lam, rho, depth, layer_scale=LAYER_SCALE, objective=objective)
                row.append(f"{float(time):.6g}")
            row += [f"{float(fixed_point(rho, depth, one)):.4g}" for one in OBJECTIVES]
            rows.append(row)
    return Table(
        f"Critical times at layer scale a0 = {LAYER_SCALE:g}, half of the plateau",
        ("L", "lambda", "rho", "t* JEPA", "t* MAE", "plateau JEPA", "plateau MAE"),
        rows,
        notes=("Paper time; divided by L and the learning rate it is steps of gradient descent.",),
    )


def ratios(rho: float = 0.5) -> dict[str, dict[str, np.ndarray]]:
    """t*(rho) / t*(1) at equal lambda against depth, at fixed layer scale and at fixed eps.

    NaN where the weaker mode does not grow.
    """
    depths = np.array(SWEPT_DEPTHS)

    def delay(
        objective: Objective, layer_scale: float | None = None, eps: float | None = None
    ) -> np.ndarray:
        both = np.array([[rho], [1.0]])
        time = critical_time(
            1.0, both, depths, objective=objective, layer_scale=layer_scale, eps=eps
        )
        code = status(1.0, both, depths, objective=objective, layer_scale=layer_scale, eps=eps)
        return np.where(code[0] == Status.GROWS, time[0] / time[1], np.nan)

    fixed_scale = {
        f"{NAMES[objective]}, a0 = {scale:g}": delay(objective, layer_scale=scale)
        for scale in SWEPT_SCALES
        for objective in OBJECTIVES
    }
    fixed_eps = {
        f"{NAMES[objective]}, eps = {SWEPT_EPS:g}": delay(objective, eps=SWEPT_EPS)
        for objective in OBJECTIVES
    }
    return {"fixed layer scale a0": fixed_scale, "fixed encoder scale eps": fixed_eps}


def depth_sweep_table(rho: float = 0.5) -> Table:
    """The delays of `ratios` as a table, with what they do and do not show."""
    by_panel = ratios(rho)
    lines = {name: values for panel in by_panel.values() for name, values in panel.items()}
    rows: list[list[str | float | int | None]] = [
        [depth, *("no growth" if np.isnan(v[i]) else f"{v[i]:.4f}" for v in lines.values())]
        for i, depth in enumerate(SWEPT_DEPTHS)
    ]
    limit = float(deep_ratio(1.0, rho, LAYER_SCALE))
    one = [f"{values[0]:.2f}" for name, values in lines.items() if _shown(name, values[0])]
    never = float(suppression_depth(rho, SWEPT_EPS))
    note = (
        "Above 1 the cleaner mode comes first. With one layer a JEPA has no such preference "
        f"({', '.join(one)} at fixed layer scales): it takes two layers, or more where the noisier "
        "mode starts close to its plateau (a0 = 0.3). Whether more depth makes the preference "
        "stronger depends on what is held fixed. At a fixed layer scale it peaks and falls to a "
        f"limit ({limit:.4f} at a0 = {LAYER_SCALE:g}); at a fixed scale of the whole encoder it "
        f"grows until the noisier mode is never learned, from L = {never:.1f} on."
    )
    return Table(
        f"Delay of the noisier of two modes of equal lambda: t*(rho = {rho:g}) / t*(rho = 1)",
        ("L", *lines),
        rows,
        notes=(note,),
    )


def _shown(name: str, value: float) -> bool:
    return name.startswith("JEPA, a0") and not np.isnan(value)


def inversion_table() -> Table:
    """Where the two objectives disagree about two modes."""
    rows: list[list[str | float | int | None]] = []
    for depth, scale in ((1, 0.1), (2, 0.1), (3, 0.1), (3, 0.2), (5, 0.2), (5, 0.3), (8, 0.3)):
        row: list[str | float | int | None] = [depth, f"{scale:g}"]
        for objective in OBJECTIVES:
            edge = inversion_boundary(0.4, 0.9, depth, objective=objective, layer_scale=scale)
            row.append(f"{float(edge):.6f}")
        rows.append(row)
    return Table(
        "Two modes come together when lambda_B / lambda_A is (A: rho 0.4, B: rho 0.9)",
        ("L", "a0", "JEPA", "MAE"),
        rows,
        notes=(_INVERTED,),
    )


def learning_panels(
    depths: tuple[int, ...] = (1, 3, 5), layer_scale: float = LAYER_SCALE
) -> dict[str, list[Curve]]:
    """Learning curves of the three families, time in units of the first arrival."""
    settings: list[tuple[int, Objective]] = [(L, one) for L in depths for one in OBJECTIVES]
    rows: dict[str, list[Curve]] = {f"{NAMES[one]}  L = {L}": [] for L, one in settings}
    for _, modes in FAMILIES:
        lam, rho = (np.array(column) for column in zip(*modes, strict=True))
        arrivals = [
            critical_time(lam, rho, L, layer_scale=layer_scale, objective=one)
            for L, one in settings
        ]
        # One axis a column: rows are to be compared.
        last = max(float(arrival.max() / arrival.min()) for arrival in arrivals)
        times = np.linspace(0, 1.12 * last, 400)
        for (L, one), arrival, row in zip(settings, arrivals, rows.values(), strict=True):
            first = float(arrival.min())
            w = trajectory(lam, rho, L, layer_scale=layer_scale, objective=one, times=times * first)
            row.append((times, w / fixed_point(rho, L, one)[:, None]))
    return rows


def save_learning(run: Run) -> None:
    """Draw learning curves of three families of modes for both objectives."""
    rows = learning_panels()
    columns = [
        (FAMILIES[0][0], [f"lambda {lam:g}" for lam, _ in FAMILIES[0][1]]),
        (FAMILIES[1][0], [f"rho {rho:g}" for _, rho in FAMILIES[1][1]]),
        (FAMILIES[2][0], [f"{lam:g}, {rho:g}" for lam, rho in FAMILIES[2][1]]),
    ]
    arrays: dict[str, np.ndarray] = {}
    for row, curves in rows.items():
        for j, (times, strength) in enumerate(curves):
            key = f"{row.replace('  L = ', '_').lower()}_{j}"
            arrays |= {f"times_{key}": times, f"share_{key}": strength}
    save(
        run,
        "1-learning-curves",
        learning_figure(columns, rows),
        "Share of its plateau that the encoder has on each mode, against time in units of the "
        f"first arrival, at layer scale a0 = {LAYER_SCALE:g}. Right column: covariance and "
        "predictability disagree.",
        **arrays,
    )


def save_depth(run: Run, depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)) -> None:
    """Draw critical times against rho, and the delay of a noisier mode against depth."""
    rho = np.linspace(0.2, 1.2, 121)
    times: dict[str, dict[int, np.ndarray]] = {}
    leading: dict[str, dict[int, float]] = {}
    for objective in OBJECTIVES:
        name = NAMES[objective]
        setting = {"layer_scale": LAYER_SCALE, "objective": objective}
        times[name] = {L: critical_time(1.0, rho, L, **setting) for L in depths}  # type: ignore[arg-type]
        leading[name] = {
            L: float(critical_time(1.0, 1.0, L, form="leading", **setting))  # type: ignore[arg-type]
            for L in depths
        }
    save(
        run,
        "2-critical-times",
        depth_figure(rho, times, leading),
        f"Critical time against rho at lambda = 1 and layer scale a0 = {LAYER_SCALE:g}, as a "
        "multiple of its leading term (in brackets), which knows nothing of rho. A curve that "
        "falls prefers clean modes, one that rises noisy modes; the line at 1 is no preference.",
        rho=rho,
        **{f"{name}_{L}".lower(): v for name, by in times.items() for L, v in by.items()},
    )
    by_panel = ratios()
    save(
        run,
        "3-depth",
        ratio_figure(np.array(SWEPT_DEPTHS), by_panel, ylabel="t*(rho = 0.5) / t*(rho = 1)"),
        "Delay of the noisier of two modes of equal lambda against depth; 1 is no preference. Left "
        "at a fixed layer scale, right at a fixed scale of the whole encoder.",
        depths=np.array(SWEPT_DEPTHS),
        **{
            name.replace(", ", "_").replace(" = ", "").lower(): values
            for panel in by_panel.values()
            for name, values in panel.items()
        },
    )
