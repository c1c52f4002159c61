"""For which SLURM the facts of tests/slurm/test_slurm_facts.py were last shown: the versions, and the slurm.conf.

`make slurm-facts` runs these tests, then this program, which adds the installed version to the record.
"""

import hashlib
import json
from pathlib import Path

from slurm_cluster import CONFIGURATION, installed_version

RECORD = Path(__file__).parents[1] / "slurm" / "facts_shown_for.json"


def configuration_digest() -> str:
    """Of the cluster's slurm.conf: with other settings, facts have to be shown again."""
    return hashlib.sha256(CONFIGURATION.encode()).hexdigest()[:16]


def shown_versions(record: Path = RECORD) -> list[str]:
    """Those for which the facts were shown with the present slurm.conf."""
    if not record.exists():
        return []
    shown = json.loads(record.read_text())
    return shown["versions"] if shown["slurm_conf"] == configuration_digest() else []


def is_shown(version: str, record: Path = RECORD) -> bool:
    return version in shown_versions(record)


def write_record(version: str, record: Path = RECORD) -> None:
    versions = sorted({*shown_versions(record), version})
    record.write_text(json.dumps({"slurm_conf": configuration_digest(), "versions": versions}, indent=2) + "\n")


if __name__ == "__main__":
    write_record(installed_version())
    print(f"{RECORD}: {', '.join(shown_versions())}")
