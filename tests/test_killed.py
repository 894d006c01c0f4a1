"""SIGKILL while training and while saving. kill_training.py does the same with larger numbers."""

import random
import sys

import pytest

import kill_training

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no fork")


def test_killed_while_saving(tmp_path):
    found = kill_training.kill_saving(20, tmp_path, random.Random(1))
    assert sum(found) == 20 and min(found) > 0


def test_killed_while_training(small_mnist, tmp_path):
    assert kill_training.kill_training(2, small_mnist, tmp_path, random.Random(1)) >= 1
