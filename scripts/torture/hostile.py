"""Values, JSON trees and bytes that programs stumble over; shared by the kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .cases import Case

HUGE = (10**5, 10**7, 10**9, 2**31, 2**63, 2**200, 1e30, 1e300)
NUMBERS = (0, -1, 1, -0.0, 0.5, 1.5, 5e-324, 1e-300, -1e300, float("nan"), float("inf"), -float("inf"), *HUGE)
OTHERS: tuple[Any, ...] = (
    None, True, False, "", "0.5", "x" * 5000, "é\u202e\x00", "../../etc/passwd", "torture_canary:run",
    [], {}, [1, 2, 3], [[[]]], {"a": {"b": 1}}, [None], ["x"],
)  # fmt: skip


def value(case: Case) -> Any:
    """Return any hostile value that JSON (as Python reads it) can hold."""
    return case.pick(NUMBERS if case.rng.random() < 0.5 else OTHERS)


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every entry of nested dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        yield (*above, key)
        yield from places(item, (*above, key))


def parent_of(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return the dictionary or list that holds the entry."""
    for key in path[:-1]:
        tree = tree[key]
    return tree


def spoil_tree(tree: Any, case: Case) -> None:
    """Change one entry of nested dictionaries and lists: another value, none, a double, another's value, a factor."""
    path = case.pick(places(tree))
    holder, key = parent_of(tree, path), path[-1]
    way = case.pick(("value", "value", "value", "remove", "scale", "swap", "add", "wrap"))
    if way == "value":
        holder[key] = value(case)
    elif way == "remove":
        del holder[key]
    elif way == "scale" and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * case.pick((-1, 2, 10, 1000, 1e6, 1e-6, 0))
    elif way == "swap":
        other = case.pick(places(tree))
        holder[key] = json.loads(json.dumps(parent_of(tree, other)[other[-1]]))
    elif way == "add" and isinstance(holder, dict):
        holder[case.pick(("", "__class__", "extra", "width", "é"))] = value(case)
    else:
        holder[key] = [holder[key]]
    case.note(f"{way} {'.'.join(map(str, path))} = {str(holder[key])[:40] if way != 'remove' else ''}")


def spoil_bytes(data: bytes, case: Case, first: int | None = None) -> bytes:
    """Flip, cut, insert, repeat or zero some bytes; within the first ones if told."""
    array, end = bytearray(data), min(len(data), first or len(data))
    way = case.pick(("flip", "flip", "bits", "cut", "insert", "zero", "repeat"))
    at = int(case.rng.integers(max(end, 1)))
    size = int(case.rng.integers(1, 9))
    if way == "flip":
        for _ in range(size):
            array[int(case.rng.integers(end))] = int(case.rng.integers(256))
    elif way == "bits":
        array[at] ^= 1 << int(case.rng.integers(8))
    elif way == "cut":
        del array[at:]
    elif way == "insert":
        array[at:at] = case.rng.bytes(size)
    elif way == "zero":
        array[at : at + 8 * size] = bytes(len(array[at : at + 8 * size]))
    else:
        array[at:at] = array[at : at + 64]
    case.note(f"{way} at {at}")
    return bytes(array)


def spoil_json(text: str, case: Case) -> bytes:
    """Return JSON text that is spoiled as text: cut, nested deeply, with long numbers, repeated keys, other encodings."""
    way = case.pick(
        ("cut", "deep", "digits", "repeat", "utf16", "bom", "latin", "empty", "list", "bytes", "comment")
    )
    case.note(way)
    return {
        "cut": lambda: text[: int(case.rng.integers(len(text)))].encode(),
        "deep": lambda: (text[:1] + '"deep": ' + "[" * 100_000 + "]" * 100_000 + "," + text[1:]).encode(),
        "digits": lambda: (text[:1] + '"digits": ' + "9" * 6000 + "," + text[1:]).encode(),
        "repeat": lambda: (text[:1] + '"config": 1, "seed": "x",' + text[1:]).encode(),
        "utf16": lambda: text.encode("utf-16"),
        "bom": lambda: b"\xef\xbb\xbf" + text.encode(),
        "latin": lambda: text[:1].encode() + b'"\xe9\xff": 1,' + text[1:].encode(),
        "empty": lambda: b"",
        "list": lambda: f"[{text}]".encode(),
        "bytes": lambda: spoil_bytes(text.encode(), case),
        "comment": lambda: ("// comment\n" + text).encode(),
    }[way]()
