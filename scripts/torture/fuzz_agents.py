"""Saved agents made hostile: their JSON, their tensors, the header of these, and the zip around both."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trebi_gym.agents import TREBIAgent

from . import hostile
from .cases import Case, kind, must, mutator
from .material import Made, make_agent

DOCUMENT, TENSORS = "agent.json", "tensors.safetensors"
OBSERVATION = np.array([1.0, 0.5, 0.25])
BUDGET = 8.0
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1}


@dataclass
class Saved:
    """A saved agent in pieces; ``pack`` puts them together. Mutators replace pieces, early or late ones."""

    document: dict[str, Any]
    header: dict[str, Any]
    body: bytearray
    text: bytes | None = None  # in the place of the document
    packed: bytes | None = None  # in the place of header and body
    members: list[tuple[str, bytes | None]] = field(default_factory=list)  # more members; None: left out
    compression: int = zipfile.ZIP_DEFLATED
    whole: bytes | None = None  # in the place of everything
    harmless: bool = True
    """Whether nothing that was changed may change what the agent does."""

    def tensors(self) -> bytes:
        if self.packed is not None:
            return self.packed
        header = json.dumps(self.header).encode()
        return struct.pack("<Q", len(header)) + header + bytes(self.body)

    def pack(self) -> bytes:
        if self.whole is not None:
            return self.whole
        found = {
            DOCUMENT: self.text if self.text is not None else json.dumps(self.document).encode(),
            TENSORS: self.tensors(),
        }
        left_out = {name for name, content in self.members if content is None}
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", self.compression) as archive:
            for name, content in [*found.items(), *self.members]:
                if content is not None and name not in left_out:
                    archive.writestr(zipfile.ZipInfo(name), content, self.compression)
        return stream.getvalue()


def prepare(folder: Path) -> Made:
    for name in (DOCUMENT, TENSORS):
        _bomb(name)  # before the workers are forked
    return make_agent(folder)


def act(agent: TREBIAgent) -> np.ndarray:
    """Decide once, and check that the decision and what it tells are finite and allowed."""
    action, state = agent.predict(OBSERVATION, budget=BUDGET, deterministic=True)
    space = agent.action_space
    assert space is not None
    must(np.isfinite(action).all(), f"acts with {action}")
    must(((action >= space.low) & (action <= space.high)).all(), f"acts with {action} outside {space}")
    for name in ("rewards", "costs", "budgets", "limits", "least"):
        must(np.isfinite(getattr(state, name)).all(), f"state.{name} is {getattr(state, name)}")
    return action


def pieces(path: Path) -> Saved:
    """Take a saved agent apart."""
    with zipfile.ZipFile(path) as archive:
        document, packed = json.loads(archive.read(DOCUMENT)), archive.read(TENSORS)
    size = struct.unpack("<Q", packed[:8])[0]
    return Saved(document, json.loads(packed[8 : 8 + size]), bytearray(packed[8 + size :]))


@kind("agents", "saved agents", prepare)
def attempt(case: Case) -> None:
    made: Made = case.material
    saved = pieces(made.path)
    case.mutate(saved)
    path = case.folder / "agent.zip"
    path.write_bytes(saved.pack())
    action = act(TREBIAgent.load(path, device="cpu"))
    if saved.harmless:
        expected = act(made.agent)
        must(np.array_equal(action, expected), f"acts with {action} where {expected} is right")


# the document


@mutator("agents")
def json_entry(saved: Saved, case: Case) -> None:
    hostile.spoil_tree(saved.document, case)
    saved.harmless = False


@mutator("agents")
def json_text(saved: Saved, case: Case) -> None:
    saved.text = hostile.spoil_json(json.dumps(saved.document), case)
    saved.harmless = False


@mutator("agents")
def json_order(saved: Saved, case: Case) -> None:
    saved.document = dict(sorted(saved.document.items(), reverse=True))


@mutator("agents")
def network_option(saved: Saved, case: Case) -> None:
    network = saved.document["config"][
        case.pick(("denoiser", "reward_critic", "cost_critic", "outcome_critic"))
    ]
    if isinstance(network, dict) and isinstance(network.get("options"), dict):
        option = case.pick([*network["options"], "width", "blocks", "levels", "unknown"])
        network["options"][option] = hostile.value(case)
        case.note(f"{option} = {str(network['options'][option])[:40]}")
    saved.harmless = False


@mutator("agents")
def other_network(saved: Saved, case: Case) -> None:
    network = saved.document["config"][
        case.pick(("denoiser", "reward_critic", "cost_critic", "outcome_critic"))
    ]
    if isinstance(network, dict):
        network["name"] = case.pick(
            ("mlp", "temporal_unet", "temporal_value", "budget", "torture_canary", "")
        )
        network["options"] = case.pick(
            ({}, {"dim": 8}, {"dim": 10**6}, {"dim_mults": [1] * 60}, {"width": 8})
        )
        case.note(network)
    saved.harmless = False


@mutator("agents")
def planner_entry(saved: Saved, case: Case) -> None:
    planner = saved.document["config"]["planner"]
    if isinstance(planner, dict) and planner:
        name = case.pick(planner)
        planner[name] = case.pick((hostile.value(case), 10**6, 10**10, 3, "ddpm", "dpm_solver"))
        case.note(f"{name} = {str(planner[name])[:40]}")
    saved.harmless = False


# the tensors


def _some_tensor(saved: Saved, case: Case) -> tuple[str, dict[str, Any]] | None:
    names = [
        name for name, entry in saved.header.items() if isinstance(entry, dict) and "data_offsets" in entry
    ]
    name = case.pick(names) if names else None
    return None if name is None else (name, saved.header[name])


@mutator("agents")
def tensor_values(saved: Saved, case: Case) -> None:
    """Fill a tensor, or one number of it, with something extreme."""
    found = _some_tensor(saved, case)
    if found is None or found[1].get("dtype") not in ("F32", "F64"):
        return
    name, entry = found
    first, last = entry["data_offsets"]
    dtype = np.float32 if entry["dtype"] == "F32" else np.float64
    if not (isinstance(first, int) and isinstance(last, int) and 0 <= first < last <= len(saved.body)):
        return
    numbers = np.frombuffer(saved.body, np.uint8)[first:last].copy()[: (last - first) // 8 * 8].view(dtype)
    word = case.pick((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e38, -1e38, 1e30, 1e-42, 1e20))
    if case.rng.random() < 0.5 and len(numbers):
        numbers[int(case.rng.integers(len(numbers)))] = word
    else:
        numbers[:] = word
    saved.body[first : first + numbers.nbytes] = numbers.tobytes()
    case.note(f"{name} = {word}")
    saved.harmless = False


@mutator("agents")
def body_bytes(saved: Saved, case: Case) -> None:
    saved.body = bytearray(hostile.spoil_bytes(bytes(saved.body), case))
    saved.harmless = False


@mutator("agents")
def header_entry(saved: Saved, case: Case) -> None:
    hostile.spoil_tree(saved.header, case)
    saved.harmless = False


@mutator("agents")
def header_shape(saved: Saved, case: Case) -> None:
    """Another shape or type of the same number of bytes, or of another number."""
    found = _some_tensor(saved, case)
    if found is None:
        return
    name, entry = found
    entry["dtype"] = case.pick((*SIZES, entry.get("dtype"), "F128", "f32"))
    count = len(saved.body) // 4
    entry["shape"] = case.pick(
        ([], [0], [count], [1, *np.atleast_1d(entry.get("shape", [])).tolist()], [2**32, 2**32], [-1])
    )
    case.note(f"{name}: {entry['dtype']} {entry['shape']}")
    saved.harmless = False


@mutator("agents")
def header_names(saved: Saved, case: Case) -> None:
    """A tensor under another name, twice, or not at all."""
    found = _some_tensor(saved, case)
    if found is None:
        return
    name, entry = found
    way = case.pick(("rename", "twice", "remove", "exchange"))
    if way == "rename":
        saved.header[name + "_"] = saved.header.pop(name)
    elif way == "twice":
        saved.header[name + ".again"] = dict(entry)
    elif way == "remove":
        del saved.header[name]
    else:
        other = _some_tensor(saved, case)
        assert other is not None
        saved.header[name], saved.header[other[0]] = other[1], entry
    case.note(f"{way} {name}")
    saved.harmless = False


@mutator("agents")
def header_bytes(saved: Saved, case: Case) -> None:
    """A header whose length lies, or whose text is no JSON."""
    whole = saved.tensors()
    size = len(whole) - len(saved.body)
    way = case.pick(("length", "text", "bytes"))
    if way == "length":
        told = case.pick((0, 1, size, 2**20, 2**31, 2**62, 2**64 - 1))
        saved.packed = struct.pack("<Q", told) + whole[8:]
    elif way == "text":
        text = hostile.spoil_json(json.dumps(saved.header), case)
        saved.packed = struct.pack("<Q", len(text)) + text + bytes(saved.body)
    else:
        saved.packed = hostile.spoil_bytes(whole, case, size)
    case.note(way)
    saved.harmless = False


# the zip


@mutator("agents")
def zip_storage(saved: Saved, case: Case) -> None:
    saved.compression = case.pick((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    case.note(saved.compression)


@mutator("agents")
def zip_more(saved: Saved, case: Case) -> None:
    """A member that is not ours; it must neither be unpacked nor matter."""
    name = case.pick(("../evil", "/tmp/torture-evil", "x" * 60_000, "", "a/b/c", "policy.pth", "data.pkl"))
    saved.members.append((name, b"cos\nsystem\n(S'true'\ntR."))
    case.note(name[:20])


@mutator("agents")
def zip_missing(saved: Saved, case: Case) -> None:
    saved.members.append((case.pick((DOCUMENT, TENSORS)), None))
    saved.harmless = False


@mutator("agents")
def zip_twice(saved: Saved, case: Case) -> None:
    """A second member of the same name."""
    saved.members.append((case.pick((DOCUMENT, TENSORS)), case.pick((b"", b"{}", b"\0" * 16))))
    saved.harmless = False


@cache
def _bomb(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(DOCUMENT if name == TENSORS else TENSORS, b"{}")
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(
                struct.pack("<Q", 15 << 20) + b" " * (20 << 20) if name == TENSORS else b" " * (20 << 20)
            )
    return stream.getvalue()


@mutator("agents")
def zip_bomb(saved: Saved, case: Case) -> None:
    """Zeros that unpack to twenty megabytes, or to as many as the zip claims."""
    data = bytearray(_bomb(case.pick((DOCUMENT, TENSORS))))
    if case.rng.random() < 0.5:  # it claims another size
        at = data.rfind(b"PK\x01\x02")
        data[at + 24 : at + 28] = struct.pack("<I", case.pick((1, 2**31, 2**32 - 2)))
    saved.whole, saved.harmless = bytes(data), False


@mutator("agents")
def zip_bytes(saved: Saved, case: Case) -> None:
    saved.whole = hostile.spoil_bytes(saved.pack(), case)
    saved.harmless = False


@mutator("agents")
def zip_directory(saved: Saved, case: Case) -> None:
    """Flags, methods, sizes and names in the directory at the zip's end."""
    data = bytearray(saved.pack())
    at = data.rfind(b"PK\x01\x02") if case.rng.random() < 0.5 else data.find(b"PK\x01\x02")
    if at < 0:
        return
    place, form = case.pick(
        ((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (38, "<I"), (42, "<I"))
    )
    top = 2 ** (8 * struct.calcsize(form)) - 1
    data[at + place : at + place + struct.calcsize(form)] = struct.pack(
        form, case.pick((0, 1, 99, top // 2, top))
    )
    case.note(f"at {place}")
    saved.whole, saved.harmless = bytes(data), False


@mutator("agents")
def no_zip(saved: Saved, case: Case) -> None:
    """A pickle, nothing, JSON, or noise under the name of an agent."""
    saved.whole = case.pick(
        (b"", b"cos\nsystem\n(S'true'\ntR.", b"{}", case.rng.bytes(500), b"PK\x05\x06" + b"\0" * 18)
    )
    saved.harmless = False
