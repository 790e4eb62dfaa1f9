"""The exceptions of the package: one small family, so that a launch script can catch them all.

A message names what was looked at (file, key, dotted path, rank), what was found and what is allowed.
"""

_MOST = 8000  # letters of a message: what a file says is quoted in some


def printable(text: str) -> str:
    """Return text as it may go to a terminal or a log: bounded, and with nothing in it that steers them."""
    if len(text) > _MOST:
        text = f"{text[: _MOST // 2]} ... ({len(text) - _MOST} letters left out) ... {text[-_MOST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode("ascii") for one in text
    )


class MindSpeedMoEError(Exception):
    """Base of every error that the package raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(MindSpeedMoEError):
    """The configuration is unreadable, has a wrong key or value, or contradicts itself."""


class DeviceError(MindSpeedMoEError):
    """The configured device is not on this machine."""


class ContractError(MindSpeedMoEError):
    """Megatron-Core is missing, unknown, imported half-way, or does not offer what its release should."""


class UnsupportedError(MindSpeedMoEError):
    """The dispatch table has no row for what the configuration asks."""


class PatchError(MindSpeedMoEError):
    """A patch cannot be applied: its target is missing or has another signature."""


class PatchConflictError(PatchError):
    """Somebody else has patched the target already."""


class MindSpeedError(MindSpeedMoEError):
    """The MindSpeed on the path is broken, unknown, imported in an order that does not work, or excludes the plugin."""


class AlreadyEnabledError(MindSpeedMoEError):
    """`enable` was called again with another configuration."""


class PreprocessError(MindSpeedMoEError):
    """What reached preprocess at run time breaks its contract."""


class RoutingMapError(PreprocessError):
    """The routing map has a wrong type, shape or device."""


class GroupError(PreprocessError):
    """A process group does not fit the expert layout, or its ranks disagree."""


class CountOverflowError(PreprocessError):
    """A buffer would hold more rows than the consumers can index."""


class VerificationError(PreprocessError):
    """What a consumer reads is not what the reference says, on this rank or on another one: training must not go on."""


class DumpError(MindSpeedMoEError):
    """What a failed verification left is unreadable, damaged, or does not belong together."""


class BenchError(MindSpeedMoEError):
    """The shape to be measured is impossible, or the implementations under measurement disagree."""


class EvidenceError(MindSpeedMoEError):
    """The record of what the suite has run is missing, unreadable or contradicts itself."""


class ReportError(MindSpeedMoEError):
    """Telemetry cannot be read or holds nothing to show, or the report cannot be made or written."""


class MindSpeedMoEWarning(UserWarning):
    """Something that the user should know and that does not stop the launch."""
