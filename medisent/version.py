"""The version of the package, and of what its numbers depend on."""

from __future__ import annotations

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of the libraries that its numbers depend on."""
    import platform
    from importlib.metadata import version

    names = ("torch", "monai", "numpy", "scipy", "nibabel", "pydicom", "SimpleITK")
    return {"medisent": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}
