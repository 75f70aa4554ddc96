"""`make check-deploy`: the files in docs/deploy, each looked at by the tool that is its judge."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DEPLOY = Path(__file__).parent.parent / "docs/deploy"
#: What a tool says that finds fault with a file, and exits 0 all the same.
COMPLAINTS = "WARN", "ignoring"
BIN = Path(sys.executable).parent


def looked_at(what: str, *command: str | Path) -> bool:
    """Whether a tool finds nothing to complain about; what it says otherwise is printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    said = [line for line in (done.stdout + done.stderr).splitlines() if any(word in line for word in COMPLAINTS)]
    said = [line for line in said if "keda.sh" not in line]  # its kinds have no schema in Kubernetes
    good = done.returncode == 0 and not said
    print(f"{'ok' if good else 'NO':3} {what}")
    if not good:
        print(done.stdout + done.stderr)
    return good


def units(place: Path) -> list[Path]:
    """The units as they are where they are used, but for the programs and users that are not on this machine."""
    made = []
    for unit in sorted((DEPLOY / "systemd").iterdir()):
        text = unit.read_text().replace("/srv/shop/.venv/bin/core", shutil.which("true") or "/bin/true")
        made.append(place / unit.name.replace("@", "@1"))
        made[-1].write_text(text.replace("User=shop\n", ""))
    return made


def main() -> None:
    """Look at all of them; exit 1 where one is refused."""
    good = [
        looked_at("Dockerfile, by hadolint", BIN / "hadolint", "--ignore", "DL3059", DEPLOY / "Dockerfile"),
        looked_at("compose.yaml, by its schema", BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec",
                  DEPLOY / "compose.yaml"),
    ]  # fmt: skip
    for file in sorted((DEPLOY / "kubernetes").iterdir()):
        good.append(looked_at(f"kubernetes/{file.name}, by its schema", BIN / "kubernetes-validate", "--strict", file))
    if shutil.which("systemd-analyze"):
        with tempfile.TemporaryDirectory() as place:
            os.chmod(place, 0o755)
            for unit in units(Path(place)):
                good.append(
                    looked_at(f"systemd/{unit.name}, by systemd", "systemd-analyze", "verify", "--man=no", unit)
                )
    else:
        print("--  systemd, which is not on this machine")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
