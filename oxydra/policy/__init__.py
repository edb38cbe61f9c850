"""The rules on what a tool may name: `paths` in the workspace, `commands` for the shell. Pure."""

from oxydra.policy.paths import (
    MAX_DEPTH,
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    READ_ONLY_ROOTS,
    ROOTS,
    VirtualPath,
    parse_virtual,
    parse_writable,
    protected,
    require_writable,
    visible,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_NAME_BYTES",
    "MAX_PATH_BYTES",
    "READ_ONLY_ROOTS",
    "ROOTS",
    "VirtualPath",
    "parse_virtual",
    "parse_writable",
    "protected",
    "require_writable",
    "visible",
]
