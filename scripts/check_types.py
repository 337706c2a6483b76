"""Type-check the package as users get it, and the scripts: mypy sees the mapped folders only in an installed package."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("trebi_gym", "envs", "agents", "datasets", "scripts")
FUZZERS = "scripts/torture"
"""Hands over what no type allows, on purpose: not checked."""


def main() -> int:
    """Install into a temporary folder, check everything there, and make sure that no file was left out."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # what an earlier build left would be installed too
    files = [
        path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
    ]
    expected = sum(not path.startswith(FUZZERS) for path in files)
    with tempfile.TemporaryDirectory() as folder:
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        subprocess.run([*install, "--no-build-isolation", "--target", folder, str(ROOT)], check=True)
        # never installed
        shutil.copytree(ROOT / "scripts", Path(folder) / "scripts", ignore=shutil.ignore_patterns("torture"))
        checked = subprocess.run(
            [
                sys.executable,
                "-m",
                "mypy",
                "--config-file",
                str(ROOT / "pyproject.toml"),
                "-p",
                "trebi_gym",
                "-p",
                "scripts",
            ],
            cwd=folder,
            env={**os.environ, "MYPYPATH": folder, "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")},
            capture_output=True,
            text=True,
            check=False,
        )
    print(checked.stdout + checked.stderr, end="")
    found = re.search(r"(?:checked|in) (\d+) source files", checked.stdout)
    if checked.returncode == 0 and (found is None or int(found.group(1)) != expected):
        print(f"mypy must check all {expected} files of {', '.join(FOLDERS)}; see the line above")
        return 1
    return checked.returncode


if __name__ == "__main__":
    sys.exit(main())
