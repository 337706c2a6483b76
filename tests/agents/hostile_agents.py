"""Mutants of a saved agent, each read and acted with in this process: run by test_hostile_agents.py, which bounds it.

    python hostile_agents.py AGENT FOLDER SEED COUNT

prints, as JSON, how many mutants were refused and how many acted, and what is wrong with the others. A mutant is right if it
is refused by an error of ours, or acts: actions in the space, predictions finite. It may take seconds and some memory only.
"""

from __future__ import annotations

import copy
import io
import json
import random
import resource
import struct
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from trebi_gym.agents import TREBIAgent
from trebi_gym.commands.data import describe_agent
from trebi_gym.errors import TrebiError

SECONDS, MEGABYTES = 20.0, 300
VALUES = [
    None, True, False, -1, 0, 1, 2, 7, 64, 1000, 32_000, 10**6, 10**9, 2**31, 2**63, 10**30, 10**400, 0.5, -0.5, 1e-300,
    1e38, 1e308, float("inf"), float("-inf"), float("nan"), "", "0", "mlp", "x" * 10_000, [], [0], [1] * 100, [[]], {},
    {"a": 1}, [None], [10**9], [0.1, "x"],
]  # fmt: skip
NAMES = ["agent.json", "tensors.safetensors"]


def places(value, path=()):
    """Every place in plain JSON data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def change_description(members, draw):
    document = json.loads(members["agent.json"])
    # marks of episodes are many and all alike
    found = [place for place in places(document) if "marks" not in place[:-1]]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        place = draw.choice(found)
        parent = document
        try:
            for key in place[:-1]:
                parent = parent[key]
            kind = draw.randrange(5)
            if kind == 0:
                del parent[place[-1]]
            elif kind == 1 and isinstance(parent, dict):
                parent[draw.choice(["width", "blocks", "steps_left", "condition", "episode_length", "x"])] = (
                    draw.choice(VALUES)
                )
            elif kind == 2 and type(parent[place[-1]]) in (int, float):
                parent[place[-1]] *= draw.choice([-1, 2, 10, 1000, 10**6, 0.1])
            else:
                parent[place[-1]] = copy.deepcopy(draw.choice(VALUES))
        except (LookupError, TypeError):
            continue
    members["agent.json"] = json.dumps(document).encode()


def change_tensors(members, draw):
    tensors = load(members["tensors.safetensors"])
    for _ in range(draw.choice([1, 1, 2, 5])):
        name = draw.choice(sorted(tensors))
        value, kind = tensors[name], draw.randrange(8)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            tensors[draw.choice(sorted(tensors)) + draw.choice(["", "x"])] = value.clone()
        elif kind == 2:
            shape = draw.choice([(), (0,), (1,), (1, 1), (7,), (*value.shape, 1), (2, *value.shape)])
            tensors[name] = torch.zeros(shape, dtype=value.dtype)
        elif kind == 3:
            other = draw.choice(
                [torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.bfloat16]
            )
            tensors[name] = value.to(other)
        elif kind == 4 and value.dtype.is_floating_point:
            huge = draw.choice([1e38, -1e38, 3e38, 1e20, 1e-45, float("nan"), float("inf"), float("-inf")])
            tensors[name] = torch.full_like(value, huge)
        elif kind == 5 and value.dtype.is_floating_point:
            tensors[name] = value * draw.choice([1e10, 1e30, -1.0, 0.0])
        elif kind == 6 and value.numel() and value.dtype.is_floating_point:
            value.view(-1)[draw.randrange(value.numel())] = draw.choice(
                [float("nan"), 3e38, float("inf"), -3e38]
            )
        else:
            prefix = draw.choice(["model.", "model.cost_critic", "model.outcome", "spaces.", "actions."])
            scale = draw.choice([1e15, 1e25, 1e37])
            for each, tensor in tensors.items():
                if each.startswith(prefix) and tensor.dtype.is_floating_point:
                    tensors[each] = (tensor * scale).contiguous()
    members["tensors.safetensors"] = save({name: value.contiguous() for name, value in tensors.items()})


def change_header(members, draw):
    packed = members["tensors.safetensors"]
    size = struct.unpack("<Q", packed[:8])[0]
    header, body = packed[8 : 8 + size], packed[8 + size :]
    kind = draw.randrange(5)
    if kind == 0:
        claimed = draw.choice([0, 1, size - 1, size + 1, len(packed), 10**8, 2**31, 2**40, 2**63, 2**64 - 1])
        members["tensors.safetensors"] = struct.pack("<Q", claimed) + header + body
        return
    document = json.loads(header)
    name = draw.choice([key for key in document if key != "__metadata__"])
    if kind == 1:
        document[name]["shape"] = draw.choice(
            [[10**9], [10**12, 10**12], [-1], [], ["a"], None, 3, [0] * 10_000]
        )
    elif kind == 2:
        document[name]["data_offsets"] = draw.choice([[0, 10**15], [5, 1], [-1, 4], [0], [], None, [0, 0]])
    elif kind == 3:
        document[name]["dtype"] = draw.choice(["F64", "I8", "BOOL", "F8_E4M3", "X", None, 3])
    else:
        document = draw.choice([[], {}, None, {"a": {}}, {"__metadata__": 3}, {name: document[name]}])
    header = json.dumps(document).encode()
    members["tensors.safetensors"] = struct.pack("<Q", len(header)) + header + body


def change_zip(members, draw):
    """Return the file's bytes."""
    kind, file = draw.randrange(8), io.BytesIO()
    method = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    if kind in (0, 5):
        method = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")
        if kind == 0:
            members[draw.choice(NAMES)] = b"\0" * draw.choice([1, 70]) * (1 << 20)
        if kind == 1:
            del members[draw.choice(NAMES)]
        if kind == 2:
            members = {
                name.upper() if draw.random() < 0.5 else "../" + name: members[name] for name in members
            }
        if kind == 3:
            members["agent.json"] = draw.choice(
                [
                    b"[" * 10**6,
                    b'{"a":' * 10**5,
                    b"1" * 10**6,
                    b"[" + b"[]," * 10**6 + b"0]",
                    b"\xff\xfe",
                    b"",
                ]
            )
        for name, content in members.items():
            archive.writestr(name, content)
        if kind == 4:
            for _ in range(draw.choice([1, 3])):
                archive.writestr(draw.choice(NAMES), draw.choice(list(members.values())))
        if kind == 5:
            for index in range(draw.choice([1, 5_000])):
                archive.writestr(f"more/{index}", b"")
        if kind == 6:
            archive.comment = b"x" * draw.choice([10, 65_535])
    content = bytearray(file.getvalue())
    if kind == 7:
        # sizes, flags, methods and places in the table of contents
        start = content.rfind(b"PK\x01\x02", 0, draw.choice([len(content), content.rfind(b"PK\x01\x02")]))
        field = draw.choice([6, 8, 10, 20, 24, 28, 30, 32, 42])
        content[start + field : start + field + 2] = draw.choice([b"\xff\xff", b"\0\0", b"\1\0", b"\x63\0"])
    return bytes(content)


def change_bytes(content, draw):
    content = bytearray(content)
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(content[: draw.randrange(len(content))])
    if kind == 1:
        return bytes(content) + bytes(draw.randrange(256) for _ in range(100))
    near_end = draw.random() < 0.5
    for _ in range(draw.choice([1, 4, 40])):
        place = draw.randrange(max(0, len(content) - 200) if near_end else 0, len(content))
        content[place] = draw.randrange(256)
    return bytes(content)


def mutant(original, draw):
    with zipfile.ZipFile(original) as archive:
        members = {name: archive.read(name) for name in NAMES}
    kind = draw.choice(["description"] * 4 + ["tensors"] * 3 + ["header", "zip", "bytes"])
    if kind == "bytes":
        return kind, change_bytes(original.read_bytes(), draw)
    if kind == "zip":
        return kind, change_zip(members, draw)
    {"description": change_description, "tensors": change_tensors, "header": change_header}[kind](
        members, draw
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return kind, file.getvalue()


def act(path):
    """Read a mutant and decide twice; raise AssertionError if what it gives is wrong."""
    agent = TREBIAgent.load(path, device="cpu")
    describe_agent(path)
    observations, state = np.zeros((2, agent.observation_space.shape[0])), None
    for _ in range(2):
        actions, state = agent.predict(observations, state, budget=[5.0, 0.0], risk=None)
        assert all(agent.action_space.contains(action) for action in actions), actions
        assert np.isfinite(actions).all(), actions
        for name in ("rewards", "costs", "least", "budgets", "limits", "reserve"):
            assert np.isfinite(getattr(state, name)).all(), (name, getattr(state, name))


def main():
    original, folder, seed, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    act(original)
    draw, wrong = random.Random(seed), []
    counted = {"refused": 0, "acted": 0}
    for index in range(count):
        kind, content = mutant(original, draw)
        path = folder / "mutant.zip"
        path.write_bytes(content)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        error = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                act(path)
            counted["acted"] += 1
        except TrebiError:
            counted["refused"] += 1
        except Exception:  # noqa: BLE001 - whatever it is, it is told
            error = traceback.format_exc(limit=-4)
        seconds = time.monotonic() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if seconds > SECONDS:
            error = f"took {seconds:.1f} s"
        if grown > MEGABYTES:
            error = f"took {grown:.0f} MB"
        if error is not None:
            (folder / f"wrong-{index}.zip").write_bytes(content)
            wrong.append({"index": index, "kind": kind, "error": error})
    print(json.dumps(counted | {"wrong": wrong}))


if __name__ == "__main__":
    main()
