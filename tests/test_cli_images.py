"""`oxydra-runner images build`: what it passes on to guest/build-images."""

from __future__ import annotations

import pytest

from oxydra.cli.main import runner
from oxydra.tiers import images


@pytest.mark.parametrize(
    ("given", "configured", "passed"),
    [
        (["--help"], "", ["--help"]),
        (["--base", "debootstrap", "mine"], "", ["--base", "debootstrap", "mine"]),
        (["mine"], '["tree", "vim"]', ["--extra-packages", "tree,vim", "mine"]),
        (["--extra-packages", "nano"], '["tree"]', ["--extra-packages", "nano"]),
        (["--extra-packages=nano"], '["tree"]', ["--extra-packages=nano"]),
    ],
)
def test_arguments_are_passed_on(
    tmp_path, monkeypatch, given: list[str], configured: str, passed: list[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(images, "build", lambda arguments: asked.append(list(arguments)) or 7)
    monkeypatch.chdir(tmp_path)
    if configured:
        folder = tmp_path / "conf"
        assert runner(["--config", str(folder / "runner.toml"), "init"]) == 0
        file = folder / "runner.toml"
        section = f"[guest_images]\nextra_packages = {configured}"
        file.write_text(file.read_text().replace("[guest_images]", section))
        given = ["--config", str(folder / "runner.toml"), "images", "build", *given]
    else:
        given = ["images", "build", *given]
    assert runner(given) == 7
    assert asked == [passed]
