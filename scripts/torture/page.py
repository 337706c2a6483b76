"""The page ``docs/reliability.md``, from the JSON of the last run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from .cases import GOOD, OUTCOMES

SHOWN = 24
"""Of the cases that went wrong, on the page; the JSON has all of them."""


def write_page(document: dict[str, Any], path: Path) -> None:
    """Write the page."""
    path.write_text(page(document))


def page(document: dict[str, Any]) -> str:
    """Return the page's text."""
    made, kinds, soak = document["made"], document["kinds"], document["soak"]
    bad = [outcome for outcome in OUTCOMES if outcome not in GOOD]
    shown = [outcome for outcome in bad if any(entry["counts"].get(outcome) for entry in kinds)]
    cases = sum(sum(entry["counts"].values()) for entry in kinds)
    wrong = sum(entry["counts"].get(outcome, 0) for entry in kinds for outcome in bad)
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    lines = [
        "# Reliability",
        "",
        "`make torture` attacks the package and counts what becomes of each case: hostile files and values, commands",
        "that are killed and run again, full disks, and a long run of predictions. This page is written by it.",
        "",
        f"Last run: {cases:,} cases and {soak['predictions']:,} predictions in {made['minutes']:.0f} minutes; "
        f"**{wrong} cases went wrong**. trebi-gym {made['version']}{made['revision']}, Python {made['python']}, "
        f"{packages}; {made['machine']}; seed {made['seed']}.",
        "",
        "A case is good if it is refused by one of our errors (in one clear line on the command line), or accepted",
        "with the right numbers: those that the file holds, those of the unspoiled input where nothing that matters",
        "was spoiled, those of an undisturbed run after a kill.",
        "",
        f"| kind | cases | {' | '.join([*GOOD, *shown])} |",
        f"|---|{'---|' * (len(GOOD) + len(shown) + 1)}",
    ]
    for entry in kinds:
        counts = entry["counts"]
        cells = [f"{counts.get(outcome, 0):,}" for outcome in (*GOOD, *shown)]
        lines.append(
            f"| {entry['words']} (`{entry['kind']}`) | {sum(counts.values()):,} | {' | '.join(cells)} |"
        )
    absent = [OUTCOMES[outcome] for outcome in bad if outcome not in shown]
    lines += [
        "",
        "; ".join(f"{outcome}: {OUTCOMES[outcome]}" for outcome in (*GOOD, *shown)) + ".",
        f"In no case: {'; '.join(absent)}." if absent else "",
        "",
        f"{soak['predictions']:,} predictions in a row took {soak['seconds']:.0f} s; after the first tenth memory grew by "
        f"{soak['megabytes_grown']:.1f} MB, open files by {soak['files_grown']}, threads by {soak['threads_grown']}.",
        "",
        "## What is tried",
        "",
        *(
            f"- `{entry['kind']}`, {entry['words']}: {', '.join(entry['mutators'])}."
            for entry in kinds
            if entry["mutators"]
        ),
        "- `kills`: SIGKILL, SIGTERM and SIGINT at random moments of every command that writes, then the command is run",
        "  again.",
        "- `disks`: a full disk, a limit on a file's size, a folder that cannot be written to, two writers of one file,",
        "  long and foreign names, links.",
        "",
        "What nothing may open is watched by the system: files planted beside the input tell when they are opened, even if",
        "the input is refused afterwards. Code run is seen by an audit hook and by a module that inputs name.",
        "",
    ]
    if document["wrong"]:
        lines += [
            "## What went wrong",
            "",
            "| case | outcome | how it was made | what happened |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{report['kind']}:{report['number']}` | {report['outcome']} "
            f"| {_cell(report['notes'])} | {_cell(report['detail'])} |"
            for report in _in_turn(document["wrong"])[:SHOWN]
        ]
        lines += ["", f"Of {wrong}, one of each sort is shown, {SHOWN} at most.", ""]
    lines += [
        "## Run it",
        "",
        "```bash",
        "make torture                                  # 10 minutes",
        "TORTURE_MINUTES=120 make torture",
        "python -m scripts.torture --only native:48    # one case again; its input is kept in runs/torture/failing",
        "python -m scripts.torture --page-only         # write this page from runs/torture/report.json",
        "```",
        "",
        "Every case is drawn from the seed, its kind and its number alone. A new way to spoil an input is one function with",
        "`@mutator(KIND)` above it, in `scripts/torture/`.",
        "",
    ]
    return "\n".join(lines)


def _in_turn(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first of every kind, then the second of every kind, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for report in reports:
        ranked.append((seen[report["kind"]], report))
        seen[report["kind"]] += 1
    return [report for _, report in sorted(ranked, key=lambda pair: pair[0])]


def _cell(text: str) -> str:
    flat = " ".join(text.replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")").split())
    return flat[:140]
