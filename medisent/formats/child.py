"""Runs alone, in a process of its own: SimpleITK decodes what it is given, and if it crashes, only this process ends.

Called as ``child.py VOLUME MAX_VOXELS MAX_BYTES`` with a JSON list of files on stdin; imports nothing of medisent. For
each file it writes one line of JSON, and after it the voxels where the file holds one scalar volume that is small
enough. It may take memory and processor time in proportion to what a file's header declares, and is ended by the system
beyond.
"""

import json
import math
import os
import re
import sys
import time

import SimpleITK as sitk  # noqa: N813

_SPACE = 1 << 30  # bytes of addresses: SimpleITK itself takes four tenths of it
_SECONDS = 5
_BYTES_A_SECOND = 10_000_000  # a tenth of what slow decoders manage


def allow(decoded: int) -> None:
    """Limit this process to what that many decoded bytes may cost; where a system knows no limits there are none."""
    if sys.platform == "win32":
        return
    import resource

    wanted = {
        resource.RLIMIT_AS: _SPACE + 3 * decoded,
        resource.RLIMIT_CPU: math.ceil(time.process_time()) + _SECONDS + decoded // _BYTES_A_SECOND,
    }
    for kind, limit in wanted.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def describe(reader: sitk.ImageFileReader) -> dict[str, object]:
    """What the file's header says, as JSON."""
    pixel = str(sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    sizes, components = [int(n) for n in reader.GetSize()], int(reader.GetNumberOfComponents())
    bits = re.search(r"(\d+)-bit", pixel)
    needed = math.prod(sizes) * components * (int(bits[1]) // 8 if bits else 8)
    return {"sizes": sizes, "components": components, "pixel": pixel, "bytes": needed}


def decode(file: str, volume: int, max_voxels: int, max_bytes: int) -> tuple[dict[str, object], bytes | memoryview]:
    """What the header says, as JSON, and the voxels of one volume, x fastest, if all are few enough."""
    allow(0)
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    told = describe(reader)
    sizes, needed = list(reader.GetSize()), int(str(told["bytes"]))
    scalar = reader.GetNumberOfComponents() == 1 and "complex" not in str(told["pixel"])
    if (
        len(sizes) not in (3, 4)
        or math.prod(sizes) > max_voxels
        or needed > max_bytes
        or not scalar
        or (len(sizes) == 4 and volume >= sizes[3])
    ):
        return told, b""
    if len(sizes) == 4:
        reader.SetExtractIndex([0, 0, 0, volume])
        reader.SetExtractSize([*sizes[:3], 0])
    allow(needed)
    image = reader.Execute()
    voxels = sitk.GetArrayFromImage(image)
    place = {"origin": image.GetOrigin(), "spacing": image.GetSpacing(), "direction": image.GetDirection()}
    return {**told, **place, "dtype": voxels.dtype.str}, voxels.data


def main() -> None:
    """Decode every file that is named on stdin, in order."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the voxels
    limits = [int(word) for word in sys.argv[1:]]
    for file in json.load(sys.stdin):
        try:
            told, voxels = decode(file, *limits)
        except (RuntimeError, MemoryError, ValueError, TypeError):
            told, voxels = {"unreadable": True}, b""
        out.write(json.dumps(told).encode() + b"\n")
        out.write(voxels)
    out.close()


if __name__ == "__main__":
    main()
