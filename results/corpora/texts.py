"""Make the two folders of text that the tasks ``code`` and ``latex`` read, from pinned packages.

    python results/corpora/texts.py [FOLDER]        (out/corpora/texts unless given)

Only the standard library, ``pip`` and ``apt-get`` (or the two .deb files, put into FOLDER/downloads by
hand where Debian's archive no longer carries these versions) are needed. The result is a pure function
of the packages below, whose hashes are checked; every text is checked against ``texts/code.sha256`` and
``texts/latex.sha256``, and what differs is named (exit status 1). Nothing is fetched that is there.

code    the .py files of three wheels, one file a document. Left out: tests, benchmarks, locale data and
        migrations (folders of these names), and empty files.
latex   the .tex files (gzipped or not) below /usr/share/doc/texlive-doc of two Debian packages, one
        manual, that is one folder, a document: its files in order of path, so that no manual stands on
        both sides of the held-out split. Left out (``NOT_LATEX``): translations and manuals that are not
        in English, tables of glyphs, symbols and particle names, and a package's code given out as
        documentation. Files that are not UTF-8 are read as Latin-1 (one letter a byte; named on the way).
Of both: a file met twice is taken once; a document, half of whose distinct lines of 40 bytes and
more (20 or more of them) stand in one larger document, is left out as its near copy.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent

WHEELS = {  # name: version, file, sha256; pure Python; BSD-3-Clause, BSD-3-Clause, MIT
    "django": (
        "5.2.8",
        "django-5.2.8-py3-none-any.whl",
        "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
    ),
    "networkx": (
        "3.5",
        "networkx-3.5-py3-none-any.whl",
        "0030d386a9a06dee3565298b4a734b68589749a544acbb6c412dc9e2489ec6ec",
    ),
    "sqlalchemy": (
        "2.0.44",
        "sqlalchemy-2.0.44-py3-none-any.whl",
        "19de7ca1246fbef9f9d1bff8f1ab25641569df226364a0e40457dc5457c54b05",
    ),
}
DEBS = {  # name: version, file, sha256; Debian 12; licences by manual, in the package's copyright file
    "texlive-science-doc": (
        "2022.20230122-4",
        "texlive-science-doc_2022.20230122-4_all.deb",
        "0e0fcc74646b916402124e8394a7a8d896e1c959cd9b184b0d7a61e08c6e72db",
    ),
    "texlive-lang-english": (
        "2022.20230122-1",
        "texlive-lang-english_2022.20230122-1_all.deb",
        "85930474bdec37bc156906642b0546c9d379b2cda4ed469c1bfe924364c1876f",
    ),
}
NOT_CODE = {"tests", "testing", "benchmarks", "locale", "migrations"}
NOT_LATEX = [
    *("*-french.tex", "*-fr.tex", "*-it.tex", "*_de.tex", "*-ja.tex", "*_cz.tex"),  # translations
    *("*/itengtlc.tex", "*/Explications_*", "*/turnstile_artigo.tex", "*/invitationfr.tex"),
    *("latex/fascicules/*", "latex/gu/*"),  # French
    *("latex/mecaso/*", "latex/tablor/*", "latex/simples-matrices/*", "latex/statistik/*"),  # French, German
    *("*/symbols.tex", "*/glyphtounicode.tex", "latex/hepnames/*"),  # tables
    "*/cc-cls-inline.tex",  # code
]
DOCS = "usr/share/doc/texlive-doc/"


def main(folder: Path, write_manifests: bool) -> int:
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    status = 0
    for name, texts in (("code", code(downloads)), ("latex", latex(downloads))):
        kept = without_near_copies(name, texts)
        lines = [f"{hashlib.sha256(text).hexdigest()}  {path}\n" for path, text in sorted(kept.items())]
        manifest = HERE / "texts" / f"{name}.sha256"
        if write_manifests:
            manifest.parent.mkdir(exist_ok=True)
            manifest.write_text("".join(lines))
        differing = sorted(set(lines) ^ set(manifest.read_text().splitlines(keepends=True)))
        for path in sorted({line.split("  ", 1)[1].rstrip("\n") for line in differing}):
            print(f"{name}: {path}: differs from the manifest", file=sys.stderr)
            status = 1
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        for path, text in kept.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(text)
        size = sum(map(len, kept.values()))
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        print(f"{name}: {len(kept)} documents, {size:,} bytes, sha256 of the manifest {digest}")
    return status


def code(downloads: Path) -> dict[str, bytes]:
    texts = {}
    for name, (version, file, sha256) in WHEELS.items():
        if not (downloads / file).exists():
            wanted = downloads / "wheels.txt"
            wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            # the platform is named because pip would else pass over wheels that this Python is too old for
            pip += ["--platform", "any", "--python-version", "3.13", "--require-hashes"]
            subprocess.run([*pip, "--requirement", wanted, "--dest", downloads], check=True)
        with zipfile.ZipFile(io.BytesIO(checked(downloads / file, sha256))) as wheel:
            for path in wheel.namelist():
                if path.endswith(".py") and not NOT_CODE & set(path.split("/")[:-1]):
                    texts[path] = wheel.read(path)
    return first_of_equal(texts)


def latex(downloads: Path) -> dict[str, bytes]:
    files = {}
    for name, (version, file, sha256) in DEBS.items():
        if not (downloads / file).exists():
            subprocess.run(["apt-get", "download", "--quiet", f"{name}={version}"], check=True, cwd=downloads)
        for path, raw in members(checked(downloads / file, sha256)):
            plain = path.removeprefix("./").removeprefix(DOCS).removesuffix(".gz")
            if path.removeprefix("./").startswith(DOCS) and plain.endswith(".tex"):
                if any(fnmatch.fnmatchcase(plain, pattern) for pattern in NOT_LATEX):
                    continue
                files[plain] = as_utf8(plain, gzip.decompress(raw) if path.endswith(".gz") else raw)
    manuals: dict[str, bytes] = defaultdict(bytes)
    for path, text in sorted(first_of_equal(files).items()):
        manual = "/".join(PurePosixPath(path).parts[:2])
        manuals[f"{manual}.tex"] += text if text.endswith(b"\n") else text + b"\n"
    return dict(manuals)


def members(deb: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of a Debian package: an ar archive that holds data.tar.*."""
    at = len(b"!<arch>\n")
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(), int(deb[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(deb[at + 60 : at + 60 + size])) as tar:
                for item in tar:
                    content = tar.extractfile(item) if item.isfile() else None
                    if content is not None:
                        yield item.name, content.read()
        at += 60 + size + size % 2


def as_utf8(path: str, raw: bytes) -> bytes:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        print(f"latex: {path}: not UTF-8, read as Latin-1")
        return raw.decode("latin-1").encode()
    return raw


def checked(path: Path, sha256: str) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path}: sha256 is {found}, expected {sha256}")
    return content


def first_of_equal(texts: dict[str, bytes]) -> dict[str, bytes]:
    """Texts that hold more than white space, of equal ones the first by path."""
    firsts: dict[bytes, str] = {}
    for path in sorted(texts):
        firsts.setdefault(texts[path], path)
    return {path: text for text, path in firsts.items() if text.strip()}


def without_near_copies(name: str, texts: dict[str, bytes]) -> dict[str, bytes]:
    lines = {
        path: {s for line in text.split(b"\n") if len(s := line.strip()) >= 40}
        for path, text in texts.items()
    }
    holders = defaultdict(list)
    for path, found in lines.items():
        for line in found:
            holders[line].append(path)
    left_out = set()
    for path, found in sorted(lines.items()):
        if len(found) < 20:
            continue
        shared = Counter(other for line in found for other in holders[line])
        for other, count in sorted(shared.items()):
            larger = (len(texts[other]), other) > (len(texts[path]), path)
            if larger and 2 * count >= len(found):
                print(f"{name}: {path}: left out, {count} of {len(found)} long lines stand in {other}")
                left_out.add(path)
                break
    return {path: text for path, text in texts.items() if path not in left_out}


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--write-manifests"]
    target = Path(arguments[0]) if arguments else Path("out/corpora/texts")
    sys.exit(main(target, "--write-manifests" in sys.argv))
