"""Laws of the public face: every name resolves, and importing it costs nothing."""

import subprocess
import sys

import pytest

import medisent


@pytest.mark.parametrize("name", medisent.__all__)
def test_every_public_name_resolves(name):
    assert getattr(medisent, name) is not None
    assert name in dir(medisent)


def test_a_name_that_is_not_there_is_refused_with_what_is():
    with pytest.raises(AttributeError, match=r"no attribute 'reed'.*read"):
        medisent.reed  # noqa: B018


def test_the_face_is_what_it_says():
    from medisent.errors import MedisentError
    from medisent.formats import read
    from medisent.models import load

    assert medisent.read is read
    assert medisent.load is load
    assert medisent.MedisentError is MedisentError


def test_importing_the_package_imports_nothing_else():
    code = "import sys, time\nt = time.process_time()\nimport medisent\nprint(time.process_time() - t)\n"
    code += "print(sorted(m for m in sys.modules if m.startswith('medisent')))\nprint('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spent, loaded, numpy = done.stdout.splitlines()
    assert float(spent) < 0.1
    assert loaded == "['medisent', 'medisent.version']"
    assert numpy == "False"


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert medisent.__version__ == version("medisent")
