"""Celery's own integration tests, as its source distribution has them: downloaded, never part of this project."""

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

PROJECT = Path(__file__).parent / "project"


def unpack(directory: Path) -> None:
    """Make a directory with the tests of the installed Celery, and with the two applications that they are run on."""
    shutil.copytree(PROJECT, directory, dirs_exist_ok=True)
    with tarfile.open(download()) as archive:
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2]
            if member.name == "pyproject.toml" or member.name.startswith("t/"):
                archive.extract(member, directory, filter="data")


def download() -> Path:
    """The source distribution of the installed Celery, which is kept."""
    wanted = version("celery")
    store = Path(sys.prefix) / "cache" / "celery"  # beside the packages, like what other tools download
    archive = store / f"celery-{wanted}.tar.gz"
    if not archive.exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-binary", "celery",
             "--no-deps", "--dest", str(store), f"celery=={wanted}"], check=True, timeout=300,
        )  # fmt: skip
    return archive
