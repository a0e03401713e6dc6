"""The `jepa` command: quick to answer, one line on a mistake, the right exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jepa_core import cli

HEAVY = ("torch", "numpy", "pandas", "sklearn", "scipy", "accelerate", "matplotlib", "jaxtyping")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jepa_core.cli", *words], capture_output=True, text=True, check=False
    )


DOMAINS = ("ecg", "linear", "tabular", "vision")
HELP = [[], ["--help"], *([domain, *flag] for domain in DOMAINS for flag in ([], ["--help"]))]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from jepa_core.cli import main; code = main(sys.argv[1:])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
        "raise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert done.stdout.startswith("usage: jepa")


def test_help_on_the_first_word_of_a_verb_lists_those_that_begin_with_it() -> None:
    done = run("ecg", "data", "--help")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("  ")] == [
        ["data", "check"],
        ["data", "build"],
        ["data", "fetch"],
    ]


@pytest.mark.parametrize("domain", DOMAINS)
def test_importing_a_domain_costs_no_torch(domain: str) -> None:
    program = (
        f"import sys, jepa_{domain}, jepa_{domain}.domain, jepa_{domain}.presets\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_training_starts_without_what_only_sharding_needs() -> None:
    program = (
        "import sys, jepa_ecg.verbs.pretrain, jepa_tabular.verbs.pretrain, "
        "jepa_vision.verbs.pretrain\n"
        "print([name for name in ('torch.distributed.tensor', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["egc"], "no domain called egc; did you mean ecg?"),
        (["ecg", "pretrian"], "did you mean pretrain?"),
        (["ecg", "data"], "data check or data build or data fetch"),
        (["ecg", "info", "--preset", "vit-xss"], "no preset called vit-xss"),
        (["ecg", "info", "--batch-size", "many"], "--batch-size"),
        (["ecg", "info", "--no-such-flag", "1"], "--no-such-flag"),
        (["ecg", "pretrain", "--out", "x"], "--data"),
        (["doctor", "--fast"], "takes no flags"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], says: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_doctor_says_what_this_machine_offers() -> None:
    done = run("doctor")
    assert done.returncode == 0
    for word in ("torch", "cuda", "bfloat16", "jepa-core[trackers]", "domain ecg", "data folder"):
        assert word in done.stdout
    assert "in Linear layers" in done.stdout


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m jepa_core.cli | true", shell=True, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == b""


def test_a_message_with_line_breaks_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["no\nsuch\ndomain"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
