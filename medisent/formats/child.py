"""Runs alone, in a process of its own: SimpleITK decodes what it is given, and if it crashes, only this process ends.

Called as ``child.py VOLUME MAX_VOXELS FILE...``; imports nothing of medisent. For each file it writes one
line of JSON, and after it the voxels where the file holds one scalar volume that is small enough.
"""

import json
import math
import os
import sys

import SimpleITK as sitk  # noqa: N813


def describe(reader: sitk.ImageFileReader) -> dict[str, object]:
    """What the file's header says, as JSON."""
    return {
        "sizes": [int(n) for n in reader.GetSize()],
        "components": int(reader.GetNumberOfComponents()),
        "pixel": str(sitk.GetPixelIDValueAsString(reader.GetPixelID())),
    }


def decode(file: str, volume: int, max_voxels: int) -> tuple[dict[str, object], bytes]:
    """The header's words, and the voxels of one volume, x fastest, if there is one and it is small enough."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    told = describe(reader)
    sizes = list(reader.GetSize())
    scalar = reader.GetNumberOfComponents() == 1 and "complex" not in str(told["pixel"])
    if (
        len(sizes) not in (3, 4)
        or math.prod(sizes[:3]) > max_voxels
        or not scalar
        or (len(sizes) == 4 and volume >= sizes[3])
    ):
        return told, b""
    if len(sizes) == 4:
        reader.SetExtractIndex([0, 0, 0, volume])
        reader.SetExtractSize([*sizes[:3], 0])
    image = reader.Execute()
    voxels = sitk.GetArrayFromImage(image)
    place = {"origin": image.GetOrigin(), "spacing": image.GetSpacing(), "direction": image.GetDirection()}
    return {**told, **place, "dtype": voxels.dtype.str}, voxels.tobytes()


def main() -> None:
    """Decode every file named on the command line, in order."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the voxels
    volume, max_voxels = int(sys.argv[1]), int(sys.argv[2])
    for file in sys.argv[3:]:
        try:
            told, voxels = decode(file, volume, max_voxels)
        except (RuntimeError, MemoryError):
            told, voxels = {"unreadable": True}, b""
        out.write(json.dumps(told).encode() + b"\n")
        out.write(voxels)
    out.close()


if __name__ == "__main__":
    main()
