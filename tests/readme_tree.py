"""The tree in the README, made from what the folders say of themselves: `python -m tests.readme_tree`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
PACKAGES = {
    "pipelines": (
        "contracts",
        "kafka",
        "kafka/kafka_python",
        "kafka/confluent",
        "features",
        "lake",
        "live",
        "play",
        "operate",
    ),
    "models": ("net", "score", "fit", "ship", "ship/registry", "plots"),
    "flows": ("streams", "local", "review", "offline", "serve", "backtesting", "demo", "doctor", "cli"),
}


def tree() -> str:
    """One line for each folder, in the order of the data, and below it the names of its files."""
    lines = []
    for package, folders in PACKAGES.items():
        lines += _folder(ROOT / package, f"{package}/", "")
        for name in folders:
            lines += _folder(ROOT / package / name, f"{name}/", "  ")
    return "\n".join(lines) + "\n"


def _folder(folder: Path, name: str, indent: str) -> list[str]:
    says = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    lines = [f"{indent}{name:<{13 - len(indent)}} {says.splitlines()[0].rstrip('.')}"]
    line = ""
    for word in names:
        if len(line) + len(word) > 100:
            lines.append(f"{'':16}{line.rstrip()}")
            line = ""
        line += word + "  "
    return [*lines, f"{'':16}{line.rstrip()}"] if line else lines


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}{tree()}{END}{after}", encoding="utf-8")
