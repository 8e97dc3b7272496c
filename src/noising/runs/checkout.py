"""The commit of a git checkout. Git is not asked under the checkout's own config, which may name programs to run."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"ref: (refs/[\w/+@-][\w/.+@-]*)")
_SECONDS = 10.0


class Checkout(NamedTuple):
    """A folder under git, and where git keeps its state."""

    root: Path
    state: Path
    """Holds HEAD and the index."""
    store: Path
    """Holds objects and branches: `state` itself, but for a linked worktree."""

    @property
    def commit(self) -> str | None:
        """The commit that is checked out, in hex; None before the first."""
        head = _read(self.state / "HEAD")
        if named := _REF.fullmatch(head):
            head = _read(self.store / named[1]) if ".." not in named[1] else ""
            if not head:  # branches that have not moved for long are in one file
                packed = re.search(rf"^([0-9a-f]+) {re.escape(named[1])}$", _read(self.store / "packed-refs"), re.M)
                head = packed[1] if packed else ""
        return head if _COMMIT.fullmatch(head) else None

    @property
    def is_dirty(self) -> bool | None:
        """Whether a file differs from its commit, in no submodule; None if git cannot say."""
        changes = self._ask("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
        return None if changes is None else bool(changes)

    def has(self, file: Path) -> bool:
        """Whether a file is tracked."""
        return self._ask("ls-files", "--error-unmatch", "--", str(file)) is not None

    def _ask(self, *arguments: str) -> str | None:
        """Ask git about this folder, as about a repository with no config but the user's own; None if it cannot say."""
        commit = self.commit
        if commit is None:
            return None
        kind = "[core]\nrepositoryformatversion = 1\n[extensions]\nobjectformat = sha256\n" if len(commit) > 40 else ""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("HEAD", commit), ("config", kind)):
                Path(folder, name).write_text(text + "\n", encoding="utf-8")
            Path(folder, "refs").mkdir()
            own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
            places = {
                "GIT_DIR": folder,
                "GIT_WORK_TREE": str(self.root),
                "GIT_INDEX_FILE": str(self.state / "index"),
                "GIT_OBJECT_DIRECTORY": str(self.store / "objects"),
                "GIT_OPTIONAL_LOCKS": "0",
            }
            try:
                git = subprocess.run(
                    ["git", *arguments],
                    cwd=self.root,
                    env=own | places,
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    check=True,
                )
            except (OSError, ValueError, subprocess.SubprocessError):
                return None
        return git.stdout.strip()


def checkout_of(folder: Path) -> Checkout | None:
    """The checkout that a folder lies in, if any."""
    for root in (folder, *folder.parents):
        entry = root / ".git"
        if entry.is_dir():
            return Checkout(root, entry, entry)
        if (words := _read(entry)).startswith("gitdir: "):
            state = root / words.removeprefix("gitdir: ")
            return Checkout(root, state, state / _read(state / "commondir"))
    return None


def _read(file: Path) -> str:
    """The content of a regular file without the last line end; "" if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    except (OSError, ValueError):
        return ""
