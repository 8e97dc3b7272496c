"""A small file that unfolds to more than any memory holds is one line, before it is unfolded."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from noising.errors import ConfigError
from noising.metrics.statistics import read_statistics
from noising.runs.folder import Run
from noising.runs.resume import read_overrides
from noising.runs.sizes import UnfoldingError, require_archive_size, require_written_out
from noising.training.checkpoints import load_checkpoint

# nine lines of ten: a milliard entries when written out
LAUGHS = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
LAUGHS += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]


def bomb(path: Path, name: str, megabytes: int = 200) -> None:
    """An archive of zeros, a thousandth of what it holds."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        for _ in range(megabytes):
            member.write(bytes(2**20))


def never(*_: object, **__: object) -> None:
    raise AssertionError("it was unfolded")


def test_archives_that_unfold_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile.ZipFile, "testzip", never)
    monkeypatch.setattr(np, "load", never)
    for name, read in (("last.ckpt", load_checkpoint), ("real.npz", read_statistics)):
        bomb(tmp_path / name, "archive/data/0")
        with pytest.raises(ValueError, match=rf"{name} expands to 0.2 GiB, far more than its size allows"):
            read(tmp_path / name)


def test_arrays_are_read_however_well_they_shrink(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", mu=np.zeros(2000), sigma=np.eye(2000))  # 32 MB in 40 kB
    require_archive_size(tmp_path / "zeros.npz")
    np.savez(tmp_path / "large.npz", mu=np.random.default_rng(0).standard_normal(2**23))  # 64 MB
    require_archive_size(tmp_path / "large.npz")


def test_text_that_names_itself_again_and_again_is_not_written_out(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("\n".join(LAUGHS))
    with pytest.raises(ConfigError, match=r"config.yaml is damaged"):
        _ = Run(tmp_path).config
    overrides = tmp_path / "overrides.yaml"
    overrides.write_text("\n".join(f"- {line.partition(' ')[2]}" for line in LAUGHS))
    assert read_overrides(overrides) is None
    overrides.write_text("- seed=1\n- timesteps=10\n")
    assert read_overrides(overrides) == ["seed=1", "timesteps=10"]


def test_a_container_that_holds_itself_is_endless() -> None:
    endless: list[object] = [1]
    endless.append(endless)
    with pytest.raises(UnfoldingError, match="millions of entries"):
        require_written_out(endless)
    shared = {"a": [1, 2]}
    require_written_out([shared] * 1000)
