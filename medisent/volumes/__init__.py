"""What a scan is: voxels and where they lie in the patient, and how it is looked at. Knows no file and no network."""

from medisent.volumes.volume import Geometry, Header, Instance, Source, Stored, Volume

__all__ = ["Geometry", "Header", "Instance", "Source", "Stored", "Volume"]
