"""Build the book into `_build/html`, unless what is there was built from exactly these sources.

A whole build takes seconds, and it is the only one that can be trusted: Sphinx repeats no warning of a
page that it does not read again and copies no changed style sheet when no page changed. So it is all or
nothing, decided by a hash of everything that goes in.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
HTML = BUILD / "html"
FINGERPRINT = BUILD / "built-from.txt"
SOURCES = ("_config.yml", "_toc.yml", "constraints.txt", "book", "gradcourse")


def fingerprint() -> str:
    """The hash of every source file's name and content."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = ROOT / source
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts and ".ipynb_checkpoints" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def build() -> None:
    """Bring `_build/html` up to date; every warning is an error."""
    now = fingerprint()
    if FINGERPRINT.exists() and FINGERPRINT.read_text(encoding="utf-8") == now:
        return
    FINGERPRINT.unlink(missing_ok=True)
    for stale in (HTML, BUILD / ".doctrees"):
        shutil.rmtree(stale, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([jupyter_book, "build", ROOT, "-W", "-n", "--keep-going", "--quiet"], check=True, cwd=ROOT)
    FINGERPRINT.write_text(now, encoding="utf-8")


if __name__ == "__main__":
    try:
        build()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    print(f"The book: {(HTML / 'index.html').as_uri()}")
