"""The file that a backup is: a gzipped tar archive whose last member says what the others were.

Any `tar` can unpack what `Writer` wrote: plain files, folders and links, in the ustar format with
pax headers where a name or a size needs one (POSIX.1-2001). `Reader` takes nothing else, since an
archive may be a stranger's: no name that leaves the folder it is unpacked in, none twice, none
below a file or a link, no device, no hard link, no more bytes than it was told to take, and only
links that stay inside the folder of their first three parts. Where all was read, each member is
what the manifest says of it. No thread.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeAlias

from oxydra.errors import OxydraError
from oxydra.runner.audit import leads_out
from oxydra.types import Json

MANIFEST = "manifest.jsonl"
BLOCK = 512
PART = 1 << 20  # bytes read or written at once
LEVEL = 1  # of gzip: a person waits, and a disk does not mind
GZIP = zlib.MAX_WBITS | 16  # how zlib is told to frame it as RFC 1952 has it
MAX_PATH = 4096  # bytes
MAX_NAME = 255
MAX_DEPTH = 120
MAX_ENTRIES = 2_000_000
MAX_PAX = 64 << 10
MAX_ROW = 64 << 10  # of the manifest
LATEST = (1 << 33) - 1  # second that a ustar header can say
LARGE = 8 << 30  # bytes that the size of a ustar header can't say

Kind: TypeAlias = Literal["file", "folder", "link"]
TYPES: dict[Kind, bytes] = {"file": b"0", "folder": b"5", "link": b"2"}
KINDS: dict[bytes, Kind] = {**{byte: kind for kind, byte in TYPES.items()}, b"\0": "file"}


class ArchiveError(OxydraError):
    """This is no whole backup, or one that nobody should unpack."""

    code = "bad_backup"


@dataclass(frozen=True, slots=True)
class Member:
    """One thing in an archive; `mtime` is in seconds, `target` where a link leads."""

    path: str
    kind: Kind = "file"
    size: int = 0
    mode: int = 0o600
    mtime: int = 0
    target: str = ""


class Writer:
    """Writes to `out`, which stays open. Raises OSError."""

    def __init__(self, out: BinaryIO) -> None:
        # not a GzipFile: one that is given up writes once more when it is collected
        self._out, self._gzip = out, zlib.compressobj(LEVEL, wbits=GZIP)
        self._rows: list[bytes] = []
        self.bytes = 0  # of what files hold
        self.files = 0

    def add(self, member: Member, blocks: Iterable[bytes] = ()) -> None:
        """Add a member; of a file `blocks` are the contents: what is missing of its size is made
        up with zeros, and what is more is left out. Raises `ArchiveError` where no `Reader` would
        take it; nothing was written then.
        """
        check(member)
        self._write(_header(member))
        digest, left = hashlib.sha256(), member.size
        for block in blocks:
            block = block[:left]
            self._put(block, digest)
            left -= len(block)
            if not left:
                break
        while left:
            block = bytes(min(left, PART))
            self._put(block, digest)
            left -= len(block)
        self._write(bytes(-member.size % BLOCK))
        self._rows.append(_row(member, digest.hexdigest()))
        self.files += member.kind == "file"
        self.bytes += member.size

    def _put(self, block: bytes, digest: hashlib._Hash) -> None:
        digest.update(block)
        self._write(block)

    def _write(self, data: bytes) -> None:
        self._out.write(self._gzip.compress(data))

    def close(self, about: Json) -> None:
        """Write the manifest with `about` in its last row, and the end."""
        last = json.dumps({"end": len(self._rows), **about}).encode() + b"\n"
        size = sum(map(len, self._rows)) + len(last)
        self._write(_header(Member(MANIFEST, size=size)))
        for row in (*self._rows, last):
            self._write(row)
        self._write(bytes(-size % BLOCK + 2 * BLOCK))
        self._out.write(self._gzip.flush())


def _row(member: Member, digest: str) -> bytes:
    row = [member.path, member.kind, member.size, member.mode, member.target, digest]
    return json.dumps(row).encode() + b"\n"


def _header(member: Member) -> bytes:
    """The blocks that come before a member's contents."""
    info = tarfile.TarInfo()
    info.type, info.mode = TYPES[member.kind], member.mode
    info.mtime = min(max(0, member.mtime), LATEST)
    records = b""
    for key, field, text in (
        ("path", "name", member.path),
        ("linkpath", "linkname", member.target),
    ):
        raw = os.fsencode(text)
        if len(raw) > 100 or not raw.isascii():
            records += _pax(key, raw)
            text = raw[:100].decode("ascii", "replace").replace("\ufffd", "?")
        setattr(info, field, text)
    if member.size < LARGE:
        info.size = member.size
    else:
        records += _pax("size", str(member.size).encode())
    header = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")
    if not records:
        return header
    extended = tarfile.TarInfo("pax-header")
    extended.type, extended.size = tarfile.XHDTYPE, len(records)
    before = extended.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")
    return before + records + bytes(-len(records) % BLOCK) + header


def _pax(key: str, value: bytes) -> bytes:
    """A record `<its own length> <key>=<value>`."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


# ----------------------------------------------------------------------------------------- reading


class Reader:
    """Reads from `file`, no more than `most` bytes of what it unpacks to.

    Iterating gives each member once, all but the manifest; `blocks` gives the contents of the one
    that was given last, and what was not asked for is read all the same. After the last, everything
    was compared with the manifest, and `about` is what `Writer.close` was given. Raises
    `ArchiveError`.
    """

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = gzip.GzipFile("", "rb", fileobj=file)
        self._most = most
        self._left = 0  # of the current member's contents
        self._padding = 0
        self._digest = hashlib.sha256()
        self._rows: list[bytes] = []  # hashes of the manifest's rows, as they should be
        self._paths: set[str] = set()
        self._closed: set[str] = set()  # those of files and links: nothing is below them
        self._parents: set[str] = set()  # what something is below
        self.about: Json = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            if member.path == MANIFEST:
                self._check_manifest()
                return
            self._take_in(member)
            self._left, self._padding = member.size, -member.size % BLOCK
            self._digest = hashlib.sha256()
            yield member
            for _ in self.blocks():
                pass
            self._read(self._padding)
            row = _row(member, self._digest.hexdigest())
            self._rows.append(hashlib.sha256(row).digest())
        raise ArchiveError("The backup was not finished: it has no manifest.")

    def blocks(self) -> Iterator[bytes]:
        """The contents of the current member, in parts."""
        while self._left:
            block = self._read(min(self._left, PART))
            self._left -= len(block)
            self._digest.update(block)
            yield block

    def _take_in(self, member: Member) -> None:
        """Raises unless it may stand beside all that came before."""
        path = member.path
        if path in self._paths:
            raise ArchiveError(f"It has two of {path[:200]!r}.")
        if len(self._paths) >= MAX_ENTRIES:
            raise ArchiveError(f"It has more than {MAX_ENTRIES:,} entries.")
        parents = {path[:end] for end, letter in enumerate(path) if letter == "/"}
        wrong = not parents.isdisjoint(self._closed)
        if wrong or (member.kind != "folder" and path in self._parents):
            raise ArchiveError(f"Of {path[:200]!r} a part is a folder and something else too.")
        self._paths.add(path)
        self._parents |= parents
        if member.kind != "folder":
            self._closed.add(path)

    def _check_manifest(self) -> None:
        """What was read is what was written: nothing more, nothing less, in the same order."""
        expected = iter(self._rows)
        for count, line in enumerate(self._lines()):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise ArchiveError("Its manifest is damaged.") from None
            if isinstance(row, dict):
                if row.get("end") != count or next(expected, None) is not None:
                    break
                self.about = row
                self._check_end()
                return
            if hashlib.sha256(line).digest() != next(expected, b""):
                what = row[0] if isinstance(row, list) and row else line[:100]
                raise ArchiveError(f"{str(what)[:200]!r} is not as it was written.")
        raise ArchiveError("Its manifest lists something else than it holds.")

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        for block in self.blocks():
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > MAX_ROW:
                break
            yield from (line + b"\n" for line in lines)
        if rest:
            raise ArchiveError("Its manifest is damaged.")

    def _check_end(self) -> None:
        self._read(self._left + self._padding)
        self._left = 0
        self._ends(self._read(2 * BLOCK))
        while block := self._raw(PART):
            self._ends(block)

    def _ends(self, block: bytes) -> None:
        if block.strip(b"\0"):
            raise ArchiveError("There is something behind its end.")

    # ----------------------------------------------------------------------------------- headers

    def _next(self) -> Member | None:
        """The next member; None at the end of the archive."""
        records: dict[str, bytes] = {}
        block = self._read(BLOCK)
        if not block.strip(b"\0"):
            return None
        info = _parsed(block)
        if info.type == tarfile.XHDTYPE:
            if not 0 < info.size <= MAX_PAX:
                raise ArchiveError("One of its headers is too long.")
            data = self._read(info.size)
            self._read(-info.size % BLOCK)
            records = _records(data)
            info = _parsed(self._read(BLOCK))
        kind = KINDS.get(info.type)
        path = os.fsdecode(records.get("path", os.fsencode(info.name)))
        if kind is None:
            raise ArchiveError(f"{path[:200]!r} is neither file, folder nor link.")
        target = os.fsdecode(records.get("linkpath", os.fsencode(info.linkname)))
        size = _number(records["size"]) if "size" in records else info.size
        if size < 0 or (size and kind != "file") or (target and kind != "link"):
            raise ArchiveError(f"The header of {path[:200]!r} makes no sense.")
        member = Member(path, kind, size, info.mode & 0o7777, int(info.mtime), target)
        check(member)
        self._left, self._padding = size, -size % BLOCK
        return member

    def _read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = self._raw(count)
        if len(data) != count:
            raise ArchiveError("The backup is cut off.")
        return data

    def _raw(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except EOFError:
            raise ArchiveError("The backup is cut off.") from None
        except (OSError, zlib.error) as error:
            raise ArchiveError(f"This is no backup, or a damaged one: {error}.") from None
        self._most -= len(data)
        if self._most < 0:
            raise ArchiveError(
                "It unpacks to more than there is room for.", remedy="Free some disk space."
            )
        return data


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise ArchiveError(f"This is no backup, or a damaged one: {error}.") from None
    if info.type == tarfile.DIRTYPE or block[156:157] == tarfile.AREGTYPE:
        info.name = info.name.rstrip("/")
    return info


def _records(data: bytes) -> dict[str, bytes]:
    """The records of a pax header; only those that `Writer` writes."""
    found: dict[str, bytes] = {}
    while data:
        length, _, _ = data.partition(b" ")
        size = _number(length)
        record, data = data[len(length) + 1 : size], data[size:]
        key, sign, value = record.partition(b"=")
        if not sign or not value.endswith(b"\n") or key not in (b"path", b"linkpath", b"size"):
            raise ArchiveError("One of its headers makes no sense.")
        found[key.decode()] = value[:-1]
    return found


def _number(text: bytes) -> int:
    if not text.isdigit() or not 0 < len(text) < 20:
        raise ArchiveError("One of its headers makes no sense.")
    return int(text)


def check(member: Member) -> None:
    """Raises unless it stays where it is unpacked."""
    raw = os.fsencode(member.path)
    parts = raw.split(b"/")
    if (
        len(raw) > MAX_PATH
        or len(parts) > MAX_DEPTH
        or b"\0" in raw
        or any(part in (b"", b".", b"..") or len(part) > MAX_NAME for part in parts)
    ):
        raise ArchiveError(f"{member.path[:200]!r} is no path that could be unpacked.")
    if member.kind == "link":
        inside = member.path.split("/", 3)
        target = os.fsencode(member.target)
        if not target or b"\0" in target or len(target) > MAX_PATH or len(inside) < 4:
            raise ArchiveError(f"{member.path[:200]!r} is a link to nowhere.")
        if leads_out(inside[3], member.target):
            raise ArchiveError(f"{member.path[:200]!r} is a link that leads out of its folder.")
