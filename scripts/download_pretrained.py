"""Download the models that Diffuser publishes, and unpack them for ``trebi import diffuser``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from trebi_gym.downloading import PUBLISHED_ID, check_file, download, download_from_drive, unpack
from trebi_gym.terminal import run


@dataclass(frozen=True)
class Arguments:
    """Download the archive of Diffuser's models (some hundred MB), and unpack it."""

    output: Path = Path("logs/pretrained")
    """The new folder for what is in the archive."""
    url: str | None = None
    """Of a mirror of the archive, a tar file; default: Google Drive, where Diffuser publishes it, by gdown."""
    size: int | None = None
    """Bytes that the archive must have."""
    sha256: str | None = None
    """Hash that the archive must have; Diffuser publishes none, so the one found is printed for the next time."""
    keep_archive: bool = False
    """Keep the archive beside the folder."""


def main(arguments: Arguments) -> None:
    """Download, check, unpack."""
    if arguments.output.exists():
        raise FileExistsError(f"{arguments.output} exists already; delete it, or choose another --output")
    archive = arguments.output.with_name(arguments.output.name + ".tar")
    if arguments.url is None:
        found = download_from_drive(PUBLISHED_ID, archive)
        check_file(archive, size=arguments.size, sha256=arguments.sha256)
    else:
        with tqdm(unit="B", unit_scale=True, desc=archive.name) as bar:
            found = download(
                arguments.url, archive, size=arguments.size, sha256=arguments.sha256, progress=bar.update
            )
    print(f"{archive.stat().st_size} bytes, SHA-256 {found}")
    unpack(archive, arguments.output)
    if not arguments.keep_archive:
        archive.unlink()
    tasks = sorted(path.parent for path in arguments.output.rglob("diffusion") if path.is_dir())
    print(
        f"unpacked to {arguments.output}: {', '.join(path.name for path in tasks) or 'no task of Diffuser is in it'}"
    )
    for task in tasks[:1]:
        print(f"next: trebi import diffuser {task} --output agent.zip")


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
