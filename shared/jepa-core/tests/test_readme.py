"""The part of a README that a command writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa_core.errors import DataError
from jepa_core.report.readme import fill_readme, typed
from jepa_core.run import next_free

BEGIN, END = "<!-- reproduce:begin -->", "<!-- reproduce:end -->"


def test_what_stands_between_the_markers_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nbehind\n")
    fill_readme(path, "new\n")
    assert path.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nbehind\n"
    fill_readme(path, "")
    assert "new" in path.read_text()


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}"])
def test_a_readme_without_one_pair_of_markers_is_refused_and_left_alone(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(DataError, match="has not one line"):
        fill_readme(path, "")
    assert path.read_text() == text
    with pytest.raises(DataError, match="cannot be read"):
        fill_readme(tmp_path / "absent.md", "")


def test_what_was_typed_is_told_without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["x", "vision", "reproduce", "--out", "a b", "--resume", "--data=c", "--seeds", "0"]
    monkeypatch.setattr("sys.argv", words)
    assert typed() == "jepa vision reproduce --seeds 0"


def test_the_next_free_folder_is_the_first_number_that_is_not_there(tmp_path: Path) -> None:
    assert next_free(tmp_path / "run") == tmp_path / "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
    assert next_free(tmp_path / "run") == tmp_path / "run-3"
