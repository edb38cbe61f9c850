"""Small PDFs, written by hand: each page shows one line of text."""

from __future__ import annotations

import zlib


def pdf(*pages: str, encrypt: bool = False) -> bytes:
    """A PDF 1.4 with a page for each text; with `encrypt` it says that it needs a password."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    out = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    table += "".join(f"{place:010} 00000 n \n" for place in places)
    more = ""
    if encrypt:
        key = "<" + "ab" * 32 + ">"
        more = (
            f"/Encrypt << /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >> /ID [<01> <01>] "
        )
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {more}>>\n"
    return out + f"{table}{trailer}startxref\n{len(out)}\n%%EOF\n".encode()


def bomb(size: int) -> bytes:
    """A PDF of a few KiB whose one page is a stream of `size` bytes of text to show."""
    line = b"BT /F1 12 Tf (A) Tj ET\n"
    stream = zlib.compress(line * (size // len(line)), 9)
    head = b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(stream)
    plain = pdf("x")
    at = plain.index(b"5 0 obj\n") + len(b"5 0 obj\n")
    end = plain.index(b"endobj", at)
    return plain[:at] + head + stream + b"\nendstream\n" + plain[end:]
