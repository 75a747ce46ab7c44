import math
import os

import pytest

import plumage.hardware.cores
from plumage.hardware.cores import granted_cores, usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "nonsense"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_what_a_control_group_grants(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert granted_cores(tmp_path) == cores


@pytest.mark.parametrize(("granted", "usable"), [(math.inf, 8), (100, 8), (3.5, 4), (0.1, 1)])
def test_no_more_cores_than_may_be_run_on_nor_than_are_granted(monkeypatch, granted, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(plumage.hardware.cores, "granted_cores", lambda groups: granted)
    assert usable_cores() == usable
