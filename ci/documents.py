"""Write the generated documents and the generated parts of the others; mindspeed_moe/documents.py says which."""

from pathlib import Path

from mindspeed_moe.documents import COMPATIBILITY, FAULTS, RELIABILITY, documents

root = Path(__file__).resolve().parent.parent
standing = [(root / path).read_text(encoding="utf-8") for path in ("README.md", COMPATIBILITY, RELIABILITY, FAULTS)]
for path, text in documents(*standing).items():
    target = root / path
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
