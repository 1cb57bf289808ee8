"""Print pip constraints to the oldest versions that pyproject.toml admits, one per line."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"].values()
for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
    requirement = Requirement(line)
    for bound in requirement.specifier:
        if bound.operator == ">=":
            marker = f"; {requirement.marker}" if requirement.marker else ""
            print(f"{requirement.name}=={bound.version}{marker}")
