"""Print pip constraints to the oldest versions that pyproject.toml admits, one per line."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
for group in (project["dependencies"], *project["optional-dependencies"].values()):
    for requirement in group:
        if requirement.startswith(project["name"]):  # an extra that names other extras
            continue
        if not (found := re.fullmatch(r"([\w.-]+)>=([\w.]+)(;.*)?", requirement)):
            raise SystemExit(f"{requirement!r} has no lower bound")
        name, oldest, marker = found.groups(default="")
        print(f"{name}=={oldest}{marker}")
