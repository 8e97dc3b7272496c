"""The commit and state of a checkout, as git itself says; nothing that its folder names is run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noising.runs import environment
from noising.runs.checkout import checkout_of

Git = Callable[..., str]


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch) -> Git:
    for person in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{person}_NAME", "me")
        monkeypatch.setenv(f"GIT_{person}_EMAIL", "me@localhost")

    def ask(folder: Path, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return ask


@pytest.fixture
def repository(git: Git, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / "inner" / "a.txt").write_text("a\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def state(folder: Path) -> tuple[Any, ...]:
    found = checkout_of(folder)
    assert found is not None
    return found.commit, found.is_dirty, found.has(folder / "a.txt"), found.has(folder / "b.txt")


def test_what_git_says(repository: Path, git: Git, tmp_path: Path) -> None:
    """On a branch, packed, detached, in a linked worktree; clean and changed; tracked and not."""
    head, inner = git(repository, "rev-parse", "HEAD"), repository / "inner"
    assert state(inner) == (head, False, True, False)
    (inner / "b.txt").write_text("not tracked")
    assert state(inner) == (head, False, True, False)
    (inner / "a.txt").write_text("b\n")
    assert state(inner) == (head, True, True, False)
    git(repository, "commit", "-qam", "second")
    second = git(repository, "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")
    git(repository, "gc", "-q")
    assert state(inner) == (second, False, True, False)
    git(repository, "checkout", "-q", head)
    assert state(inner) == (head, False, True, False)
    git(repository, "worktree", "add", "-q", "-b", "feature/x.y", str(tmp_path / "linked"), second)
    assert state(tmp_path / "linked" / "inner") == (second, False, True, False)
    (tmp_path / "linked" / "inner" / "a.txt").write_text("c\n")
    assert state(tmp_path / "linked" / "inner") == (second, True, True, False)


def test_another_hash(git: Git, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--object-format=sha256")
    assert state(tmp_path) == (None, None, False, False)  # before the first commit
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert state(tmp_path) == (git(tmp_path, "rev-parse", "HEAD"), False, True, False)


def test_nothing_that_a_folder_names_is_run(repository: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor, a filter, a hook, an included config, a submodule's own config: each would make a file."""
    broken_into = repository.parent / "broken_into"
    inner = repository / "inner" / "module"
    inner.mkdir()
    git(inner, "init", "-q")
    git(inner, "commit", "-qm", "first", "--allow-empty")
    git(repository, "-c", "advice.addEmbeddedRepo=false", "add", "inner/module")
    (repository / ".gitattributes").write_text("* filter=theirs\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "second")
    command = f"touch {broken_into}; cat"
    for folder in (repository, inner):
        git(folder, "config", "core.fsmonitor", f"touch {broken_into}; false")
        git(folder, "config", "filter.theirs.clean", command)
    (repository / ".git" / "hooks" / "post-index-change").write_text(f"#!/bin/sh\ntouch {broken_into}\n")
    (repository / ".git" / "hooks" / "post-index-change").chmod(0o755)
    (repository / "inner" / "a.txt").write_text("b\n")
    monkeypatch.chdir(repository / "inner")
    monkeypatch.setattr(environment, "__file__", str(repository.parent / "environment.py"))  # installed elsewhere
    found = environment.environment()["git"]
    assert not broken_into.exists()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert broken_into.exists()  # as git by itself would have done
    assert found == {"commit": (repository / ".git" / "refs" / "heads" / "main").read_text().strip(), "dirty": True}


@pytest.mark.parametrize("head", ["ref: ../../secret", "ref: refs/../../secret", "ref: /etc/passwd", "x", "", "\xff"])
def test_a_head_that_leads_elsewhere_is_none(head: str, repository: Path) -> None:
    (repository / "secret").write_text("a" * 40)
    (repository / ".git" / "HEAD").write_bytes(head.encode("latin-1"))
    assert state(repository) == (None, None, False, False)


def test_no_checkout(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("nothing of git's")
    found = checkout_of(tmp_path)
    assert found is None or tmp_path not in (found.root, *found.root.parents)
