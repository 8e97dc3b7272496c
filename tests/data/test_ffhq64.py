"""FFHQ-64 on a few images, by folder and by .zip: pixels, split, and each mistake in one line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from noising.data import pictures
from noising.data.ffhq64 import FFHQ64
from tests.data.helpers import draw, write_pngs

FACES = draw(12)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FFHQ64, "images", 12)
    monkeypatch.setattr(FFHQ64, "test_images", 4)


def lay(root: Path) -> Path:
    """A folder as EDM's dataset_tool.py writes it: images in folders of some, and dataset.json."""
    write_pngs(root / "00000", FACES[:7])
    write_pngs(root / "00001", FACES[7:], first=7)
    (root / "dataset.json").write_text(json.dumps({"labels": None}))
    return root


def zipped(folder: Path) -> Path:
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(folder))
    return file


@pytest.mark.parametrize("pack", [Path, zipped], ids=["folder", "zip"])
def test_the_last_faces_by_name_are_held_out(pack: type[Path], tmp_path: Path) -> None:
    data = FFHQ64(batch_size=4, root=str(pack(lay(tmp_path / "faces"))), val_images=2)
    data.setup()
    splits = [images.pixels.permute(0, 2, 3, 1).numpy() for images in (data.train, data.val, data.test)]
    for found, expected in zip(splits, (FACES[:6], FACES[6:8], FACES[8:]), strict=True):
        assert np.array_equal(found, expected)
    assert (data.channels, data.resolution, data.levels, data.classes) == (3, 64, 256, 0)
    assert data.identity == {"data": "ffhq64"}


def test_what_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(root: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            FFHQ64(batch_size=4, root=str(root), val_images=2).setup()
        assert "\n" not in str(caught.value)

    put = r": put there 12 images of 64x64, as EDM's dataset_tool\.py makes of FFHQ, or its \.zip$"
    refused(tmp_path / "none", rf"^data\.root=.*none does not exist{put}")
    folder = lay(tmp_path / "faces")
    write_pngs(folder, FACES[:1], first=99)
    refused(folder, rf"^data\.root=.*faces holds 13 images{put}")
    (folder / "00099.png").unlink()
    write_pngs(folder / "00000", draw(1, side=128), first=3)
    refused(folder, r"^data\.root: cannot read .*00003\.png: it is 128x128, not 64x64$")
    (tmp_path / "cut.zip").write_bytes(zipped(folder).read_bytes()[:100])
    refused(tmp_path / "cut.zip", rf"^data\.root=.*cut\.zip is damaged, or no \.zip \(.*\){put}")
    monkeypatch.setattr(pictures, "ENTRY", 2**10)
    refused(zipped(folder), r"0000./000..\.png unfolds to 0 MiB, more than any image here needs")
    with pytest.raises(ValueError, match=r"^val_images must be from 1 to 7, got 8$"):
        FFHQ64(batch_size=4, val_images=8)
