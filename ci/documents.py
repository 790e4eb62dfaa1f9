"""Write the generated documents: docs/PATCHES.md, docs/config.schema.json and the matrix in README.md."""

from pathlib import Path

from mindspeed_moe.documents import documents

root = Path(__file__).resolve().parent.parent
for path, text in documents((root / "README.md").read_text(encoding="utf-8")).items():
    target = root / path
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
