"""The file that a backup is: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.errors import OxydraError
from oxydra.runner.archive import LARGE, MANIFEST, ArchiveError, Member, Reader, Writer, _header
from oxydra.runner.restore import Plan, restore, verify
from oxydra.store import Store

ROOM = 1 << 30
TOP = "users/alice/shared"


def packed(members, about=None):
    """An archive of `(member, data)`."""
    out = io.BytesIO()
    writer = Writer(out)
    for member, data in members:
        writer.add(member, [data])
    writer.close(about or {})
    return out.getvalue()


def unpacked(data, most=ROOM):
    reader = Reader(io.BytesIO(data), most)
    return [(member, b"".join(reader.blocks())) for member in reader], reader.about


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60)
PATHS = st.lists(NAMES.filter(lambda n: n not in (".", "..")), min_size=1, max_size=12)


@given(st.dictionaries(PATHS.map("/".join), st.binary(max_size=3000), max_size=6))
def test_what_goes_in_comes_out(files):
    folders = {path[:end] for path in files for end, c in enumerate(path) if c == "/"}
    files = {path: data for path, data in files.items() if path not in folders}
    wanted = [(Member(p, size=len(d), mode=0o640, mtime=7), d) for p, d in files.items()]
    wanted = [(m, d) for m, d in wanted if m.path != MANIFEST and len(os.fsencode(m.path)) < 255]
    assert unpacked(packed(wanted, {"said": "é"})) == (wanted, {"end": len(wanted), "said": "é"})


def test_names_that_are_no_utf8_long_names_links_and_folders():
    odd = os.fsdecode(b"\xff\xfe name")
    deep = "/".join(["users/alice/shared", *("d" * 200 for _ in range(8))])
    members = [
        Member(f"{TOP}/{odd}", size=3),
        Member(f"{deep}/file", size=3),
        Member(deep, "folder", mode=0o755),
        Member(f"{TOP}/link", "link", mode=0o777, target=f"{odd}/x"),
    ]
    found, _ = unpacked(packed([(m, b"abc" if m.size else b"") for m in members]))
    assert [member for member, _ in found] == members


def test_any_tar_unpacks_it(tmp_path):
    members = [Member("a/é" + "x" * 150, size=5), Member("a", "folder", mode=0o755)]
    (tmp_path / "x.tar.gz").write_bytes(packed([(members[0], b"hello"), (members[1], b"")]))
    subprocess.run(["tar", "xzf", "x.tar.gz"], cwd=tmp_path, check=True, env={"LANG": "C.UTF-8"})
    assert (tmp_path / members[0].path).read_text() == "hello"
    rows = (tmp_path / MANIFEST).read_text().splitlines()
    assert json.loads(rows[0])[:3] == [members[0].path, "file", 5]


def test_a_file_that_became_shorter_or_longer_has_the_size_that_was_said():
    data = packed([(Member("a", size=5), b"ab"), (Member("b", size=2), b"abcd")])
    assert [d for _, d in unpacked(data)[0]] == [b"ab\0\0\0", b"ab"]


def test_a_file_of_more_than_8_gib_has_a_size(tmp_path):
    header = io.BytesIO(_header(Member("big", size=LARGE + 7)))
    assert b"size=%d\n" % (LARGE + 7) in header.getvalue()


# ------------------------------------------------------------------------------ damaged archives

SOUND = packed([(Member("a", size=5), b"hello"), (Member("b", size=700), b"x" * 700)])


@pytest.mark.parametrize("cut", range(0, len(SOUND), 7))
def test_a_cut_off_archive_is_refused(cut):
    with pytest.raises(ArchiveError):
        unpacked(SOUND[:cut])


def test_no_changed_byte_goes_unnoticed():
    plain = gzip.decompress(SOUND)
    for at in range(len(plain)):
        changed = plain[:at] + bytes([plain[at] ^ 0x10]) + plain[at + 1 :]
        try:
            found = unpacked(gzip.compress(changed, 1))
        except ArchiveError:
            continue
        assert found == unpacked(SOUND), at  # the padding, an owner: nothing of ours


@pytest.mark.parametrize("more", [b"x", b"\0" * 512 + b"x", SOUND])
def test_something_behind_the_end_is_refused(more):
    with pytest.raises(ArchiveError):
        unpacked(gzip.compress(gzip.decompress(SOUND) + more))


def test_a_missing_and_an_added_member_are_noticed():
    plain = gzip.decompress(SOUND)
    for without in (plain[1024:], plain[:1024] + _header(Member("c")) + plain[1024:]):
        with pytest.raises(ArchiveError, match=r"as it was written|something else"):
            unpacked(gzip.compress(without))


@given(st.binary(max_size=2000))
def test_noise_is_refused(data):
    for given_ in (data, gzip.compress(data)):
        with pytest.raises(ArchiveError):
            unpacked(given_)


def test_a_bomb_is_stopped():
    bomb = packed([(Member("zeros", size=64 << 20), bytes(64 << 20))])
    assert len(bomb) < 1 << 20
    with pytest.raises(ArchiveError, match="room"):
        unpacked(bomb, most=32 << 20)
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(ArchiveError, match="too long"):
        unpacked(gzip.compress(header.tobuf() + bytes(4096)))


# ------------------------------------------------------------------------------- hostile archives


def info(name, kind=tarfile.REGTYPE, target="", data=b""):
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, len(data)
    return found, data


ABOUT = {
    "format": 1,
    "oxydra": "0.1.0",
    "created_at": "2026-01-01T00:00:00+00:00",
    "users": ["alice"],
    "home": "/home/alice",
    "layers": {},
    "workspace_root": {"said": "spaces", "layer": "folder", "was": "/home/alice/.oxydra/spaces"},
}


def forged(*entries, about=ABOUT):
    """An archive as somebody would make it who means harm, with a manifest that fits."""
    data = json.dumps(about).encode()
    out, rows = io.BytesIO(), []
    writer = Writer(io.BytesIO())
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for found, content in [info("backup.json", data=data), *entries]:
            archive.addfile(found, io.BytesIO(content))
            kind = {b"5": "folder", b"2": "link"}.get(found.type, "file")
            member = Member(
                "x", kind, len(content), found.mode, target="y" if kind == "link" else ""
            )
            writer._rows.clear()
            if kind != "link":
                writer.add(member, [content])
                row = json.loads(writer._rows[0])
            else:
                row = ["", "link", 0, found.mode, "", writer and _empty()]
            row[0], row[4] = found.name, found.linkname if kind == "link" else ""
            rows.append(json.dumps(row) + "\n")
        last = json.dumps({"end": len(rows)}) + "\n"
        found, content = info(MANIFEST, data="".join([*rows, last]).encode())
        archive.addfile(found, io.BytesIO(content))
    return out.getvalue()


def _empty():
    import hashlib

    return hashlib.sha256().hexdigest()


FILE = info(f"{TOP}/file", data=b"hello")
HOSTILE = {
    "absolute": [info("/etc/evil", data=b"x")],
    "absolute in the workspace": [info("//users/alice/shared/x", data=b"x")],
    "upwards": [info("users/alice/shared/../../../../evil", data=b"x")],
    "upwards at once": [info("../evil", data=b"x")],
    "upwards in the configuration": [info("config/folder/../../evil", data=b"x")],
    "dot": [info("users/alice/shared/./x", data=b"x")],
    "nothing between": [info("users/alice/shared//x", data=b"x")],
    "a stranger": [info("users/bob/shared/x", data=b"x")],
    "the user's folder": [info("users/alice", tarfile.DIRTYPE)],
    "a place of the runner's": [info("users/alice/ipc/gateway-token", data=b"x")],
    "a log": [info("users/alice/logs/runner.log", data=b"x")],
    "a lock": [info("users/alice/internal/daemon.lock", data=b"x")],
    "another database": [info("users/alice/internal/oxydra.db-wal", data=b"x")],
    "an attachment by another name": [info("users/alice/internal/attachments/x", data=b"x")],
    "a link out": [info(f"{TOP}/link", tarfile.SYMTYPE, "/etc/passwd")],
    "a link up": [info(f"{TOP}/link", tarfile.SYMTYPE, "../vault/x")],
    "a link up after going down": [info(f"{TOP}/link", tarfile.SYMTYPE, "a/../../vault")],
    "a link to nowhere": [info(f"{TOP}/link", tarfile.SYMTYPE, "")],
    "a link for a folder of ours": [info(TOP, tarfile.SYMTYPE, "/etc")],
    "a link and a file below": [
        info(f"{TOP}/link", tarfile.SYMTYPE, "other"),
        info(f"{TOP}/link/x", data=b"x"),
    ],
    "a file and a file below": [FILE, info(f"{TOP}/file/x", data=b"x")],
    "a file that has others below": [info(f"{TOP}/a/x", data=b"x"), info(f"{TOP}/a", data=b"x")],
    "a link that has others below": [
        info(f"{TOP}/a/x", data=b"x"),
        info(f"{TOP}/a", tarfile.SYMTYPE, "b"),
    ],
    "twice": [FILE, FILE],
    "a hard link": [FILE, info(f"{TOP}/hard", tarfile.LNKTYPE, f"{TOP}/file")],
    "a hard link out": [info(f"{TOP}/hard", tarfile.LNKTYPE, "/etc/passwd")],
    "a character device": [info(f"{TOP}/null", tarfile.CHRTYPE)],
    "a block device": [info(f"{TOP}/disk", tarfile.BLKTYPE)],
    "a FIFO": [info(f"{TOP}/fifo", tarfile.FIFOTYPE)],
    "a name too long": [info(f"{TOP}/{'x' * 256}", data=b"x")],
    "a path too deep": [info(f"{TOP}{'/d' * 130}", data=b"x")],
    "a key elsewhere": [info("keys/../evil", data=b"x"), info("keys/a b", data=b"x")],
    "whom to trust": [info("config/home/trusted.json", data=b"{}")],
    "a key in the configuration": [info("config/home/keys/openai", data=b"x")],
    "a layer that there is not": [info("config/root/x.toml", data=b"x")],
    "a database that is none": [info("users/alice/internal/oxydra.db", data=b"DROP TABLE")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_changes_nothing(tmp_path, name):
    (tmp_path / "x.tar.gz").write_bytes(forged(*HOSTILE[name]))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OxydraError):
        restore(tmp_path / "x.tar.gz", Plan(folder=tmp_path / "new"))
    left = set(tmp_path.rglob("*")) - set(before)
    assert left <= {tmp_path / "new", tmp_path / "new" / "spaces"}
    assert not os.path.lexists("/etc/evil") and not (tmp_path.parent / "evil").exists()
    if "database" not in name or "another" in name:
        with pytest.raises(OxydraError):
            verify(tmp_path / "x.tar.gz")


def test_the_forger_makes_an_archive_that_is_taken(tmp_path):
    """Else the tests above could not fail."""
    good = [FILE, info(f"{TOP}/b/link", tarfile.SYMTYPE, "../file")]
    set_id = info(f"{TOP}/program", data=b"x")
    set_id[0].mode = 0o6755
    (tmp_path / "x.tar.gz").write_bytes(forged(*good, set_id))
    done = restore(tmp_path / "x.tar.gz", Plan(folder=tmp_path / "new"))
    shared = tmp_path / "new" / "spaces" / "alice" / "shared"
    assert done.users == ["alice"] and (shared / "b" / "link").read_text() == "hello"
    assert (shared / "program").stat().st_mode & 0o7777 == 0o755
    assert shared.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"users": ["../alice"]},
        {"users": "alice"},
        {"home": None},
        {"workspace_root": {"said": "/var/lib/oxydra", "layer": "folder"}},
        {"workspace_root": {"said": "../../../spaces", "layer": "folder"}},
        {"workspace_root": {"said": "spaces", "layer": "elsewhere"}},
    ],
)
def test_what_an_archive_says_of_itself_is_not_believed(tmp_path, change):
    (tmp_path / "x.tar.gz").write_bytes(forged(FILE, about={**ABOUT, **change}))
    with pytest.raises(OxydraError):
        restore(tmp_path / "x.tar.gz", Plan(folder=tmp_path / "new"))
    assert not (tmp_path / "new" / "spaces").exists()


def test_a_database_of_a_newer_version_is_told(tmp_path):
    store = Store(tmp_path / "oxydra.db")
    with store._transaction() as db:
        db.pragma("user_version", 999)
    store.copy()
    data = store.snapshot.read_bytes()
    store.close()
    (tmp_path / "x.tar.gz").write_bytes(forged(info("users/alice/internal/oxydra.db", data=data)))
    assert verify(tmp_path / "x.tar.gz").schemas == {"alice": 999}
    with pytest.raises(ArchiveError, match="newer"):
        restore(tmp_path / "x.tar.gz", Plan(folder=tmp_path / "new"))
