"""The tutorials run as they stand: their Python blocks, in order, in one namespace."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from calm_jax import cli
from calm_jax.commands import modules

pytestmark = pytest.mark.usefixtures("quick_compilation")

DOCS = Path(__file__).parent.parent / "docs"
NEEDS = {"tutorial_worms": "celegans_dag2023", "tutorial_ca1": "mouse_ca1_sheintuch2020"}


def blocks(name: str, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page: (line, text)."""
    text = (DOCS / f"{name}.md").read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [(text[: m.start(1)].count("\n"), m[1]) for m in found]


@pytest.mark.parametrize("name", ["tutorial_simulation", "tutorial_worms", "tutorial_ca1"])
def test_a_tutorial_runs(name, tmp_path, monkeypatch):
    if name in NEEDS:
        root = os.environ.get("CALM_JAX_RECORDINGS")
        if not root or not (Path(root) / NEEDS[name]).is_dir():
            pytest.skip(f"CALM_JAX_RECORDINGS names no folder with {NEEDS[name]}")
    found = blocks(name, "python")
    assert len(found) >= 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    space: dict = {"__name__": name}
    for line, text in found:
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * line + text, f"docs/{name}.md", "exec"), space)


def test_the_commands_of_tutorials_are_commands():
    lines = [x for p in DOCS.glob("tutorial_*.md") for _, b in blocks(p.stem, "console")
             for x in b.splitlines()]  # fmt: skip
    assert lines
    parser, _ = cli._parser()
    for line in lines:
        program, command, *words = shlex.split(line)
        assert program == "calm-jax" and command in modules()
        known, rest = parser.parse_known_args([command, *words])
        fields = rest if command == "pretrain" else []
        assert rest == fields
        if command == "pretrain":
            from calm_jax import experiments_loader
            from calm_jax.commands.fields import override

            override(experiments_loader.load_experiment(known.experiment), rest)
