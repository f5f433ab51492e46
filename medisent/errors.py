"""The refusals: what was asked, what was found, what to do. Each knows its exit code and nothing else; and warnings."""


class MedisentError(Exception):
    """Base of every refusal.

    Args:
        message: The sentences, at most six lines.
        code: The fault's own name, such as ``geometry.gap``; else that of its class.

    Attributes:
        code: The name of the fault, stable, for scripts.
        exit_code: What the command line returns: 2 usage, 3 input refused, 4 machine, 5 quality gate.
    """

    code = "medisent"
    exit_code = 3

    def __init__(self, message: str = "", code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class UsageError(MedisentError):
    """The call itself makes no sense."""

    code = "usage"
    exit_code = 2


class FormatError(MedisentError):
    """A file is not a scan, or not one that can be trusted."""

    code = "format"


class GeometryError(MedisentError):
    """The voxels have no trustworthy place in space."""

    code = "geometry"


class StudyError(MedisentError):
    """A study file says something that cannot be meant."""

    code = "study"


class CohortError(MedisentError):
    """A cohort table and its scans do not fit together."""

    code = "cohort"


class InterventionError(MedisentError):
    """A factor was asked to take a value it cannot take."""

    code = "intervention"


class ModelError(MedisentError):
    """A model file is missing, damaged, of another version or unfit for the request."""

    code = "model"


class MachineError(MedisentError):
    """Memory, device, disk or permission."""

    code = "machine"
    exit_code = 4


class GateError(MedisentError):
    """A quality gate of the study was not met."""

    code = "gate"
    exit_code = 5


class Interrupted(BaseException):
    """The work was asked to end, and has ended where it can go on: no error, and caught by no ``except Exception``.

    Attributes:
        code: The name of the fault, for scripts.
        exit_code: What the command line returns.
    """

    code = "interrupted"
    exit_code = 130


class MedisentWarning(UserWarning):
    """What must not be missed although the work goes on."""


_MEMORY_WORDS = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc"),
    *("failed to map segment", "can't start new thread"),
    *("could not create a primitive", "could not create a memory", "could not execute a primitive"),  # oneDNN
)


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on the host or on a device."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY_WORDS)
