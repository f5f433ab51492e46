"""A scan in the viewer that turns through its planes, alone or beside an edited one."""

from __future__ import annotations

from medisent.images import Scan, volume_of
from medisent.reports import scan_page
from medisent.reports.cards import Page


def view(scan: Scan, edited: Scan | None = None) -> Page:
    """A page with the scan in a viewer, for a notebook to show in a frame; ``.save("page.html")`` writes it.

    Arguments:
        scan: What is shown.
        edited: The same scan after an edit, on the same voxels; a slider leads from one to the other.

    Raises:
        MedisentError: A scan is refused, or the two do not lie on the same voxels.
    """
    return Page(scan_page(volume_of(scan), None if edited is None else volume_of(edited)), height=42)
