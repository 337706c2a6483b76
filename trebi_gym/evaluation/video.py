"""A rollout as an mp4, with the remaining budget drawn in."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from trebi_gym.budget import Budget, check_budget
from trebi_gym.checks import check_seed
from trebi_gym.errors import RenderingError, TrebiError
from trebi_gym.evaluation.schedules import BudgetSchedule, changes_within
from trebi_gym.files import replacing
from trebi_gym.rollout import BudgetChange, Policy, envs_for, rollout

Frame = npt.NDArray[np.uint8]

PANEL = 56
"""Height of the bar under the picture, in pixels."""

NARROWEST = 240
"""Width of a frame, in pixels, that the words under it need."""


@dataclass(frozen=True)
class Recording:
    """What was recorded."""

    path: Path
    frames: int
    episode_return: float
    cost: float
    budget: float
    kept: bool


def record_video(
    agent: Policy,
    env_id: str,
    path: str | os.PathLike[str],
    *,
    budget: float,
    seed: int = 0,
    schedule: Sequence[BudgetChange] | BudgetSchedule = (),
    fps: float | None = None,
) -> Recording:
    """Run one episode and write it as an mp4; the file appears only when it is complete.

    Args:
        agent: what acts.
        env_id: a registered environment that renders ``rgb_array``.
        path: of the video, ending in .mp4.
        budget: what the episode may cost.
        seed: of the environment and of the agent's draws.
        schedule: changes of the budget in mid-episode, or a kind of them, drawn from the seed.
        fps: frames a second; None: the environment's own, else 30.

    Raises:
        BudgetError: the budget is none, or a change comes at a step that the episode does not reach.
        RenderingError: the environment gives no picture on this machine, one that is none, or pictures of several sizes.
        TrebiError: another ending than .mp4, or a seed or a number of frames that is out of range.
    """
    target = Path(path)
    if target.suffix != ".mp4":
        raise TrebiError(f"a video is saved as .mp4; got {target.name!r}")
    rate = None if fps is None else _check_rate(fps, "fps")
    seed, largest = check_seed(seed), check_budget(budget)
    envs, limit = envs_for(agent, env_id, 1, render_mode="rgb_array")
    try:
        changes = changes_within(schedule, env_id, limit)
        seeder = getattr(agent, "set_random_seed", None)
        if seeder is not None:
            seeder(seed)
        if rate is None:
            rate = _check_rate(envs.metadata.get("render_fps") or 30, "the environment's render_fps")
        frames: list[Frame] = []
        episode_return = 0.0
        after = Budget(largest)
        for step in rollout(agent, envs, budgets=[budget], schedule=changes, seed=seed):
            episode_return += float(step.rewards[0])
            after = step.budgets_after[0]
            if math.isfinite(after.remaining):
                largest = max(largest, after.remaining)
            frames.append(
                draw_budget(
                    _render(envs), after.remaining, largest, cost=float(step.costs[0]), step=after.step
                )
            )
            if step.done[0]:
                break
    finally:
        envs.close()
    write_mp4(frames, target, rate)
    return Recording(target, len(frames), episode_return, after.spent, float(budget), after.kept)


def draw_budget(frame: Frame, remaining: float, largest: float, *, cost: float, step: int) -> Frame:
    """Return the frame (h, w, 3) with a bar under it: what is left of the budget, and what the step cost.

    The result has even sides, as the video codec needs.
    """
    height, width = frame.shape[0] + PANEL, frame.shape[1]
    picture = Image.new("RGB", (width + width % 2, height + height % 2), (250, 250, 248))
    picture.paste(Image.fromarray(frame), (0, 0))
    pen = ImageDraw.Draw(picture)
    left, right, top = 12, width - 12, frame.shape[0] + 30
    share = 1.0 if math.isinf(remaining) else min(max(remaining / largest if largest > 0 else 0.0, 0.0), 1.0)
    colour = (88, 129, 87) if share > 0.25 else (214, 143, 49) if remaining > 0 else (200, 85, 61)
    pen.rectangle((left, top, right, top + 14), fill=(228, 228, 224))
    if share > 0:
        pen.rectangle((left, top, left + share * (right - left), top + 14), fill=colour)
    font = ImageFont.load_default(size=15)
    words = f"budget left {remaining:.2f}" if remaining >= 0 else f"over budget by {-remaining:.2f}"
    pen.text((left, top - 23), words, fill=(40, 40, 40) if remaining >= 0 else (200, 85, 61), font=font)
    pen.text((right, top - 23), f"step {step}   cost {cost:.2f}", fill=(40, 40, 40), font=font, anchor="ra")
    return np.asarray(picture)


def write_mp4(frames: Sequence[Frame], path: str | os.PathLike[str], fps: float) -> None:
    """Write frames (h, w, 3) of even sides as H.264.

    Raises:
        RenderingError: the frames are not of one size.
        TrebiError: there is no frame.
    """
    from moviepy import ImageSequenceClip  # half a second that only videos need

    if not frames:
        raise TrebiError("there is no frame to write")
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) > 1:
        raise RenderingError(
            f"the pictures of a video must have one size; the environment gave several, of (height, width) {sizes[0]} and "
            f"{sizes[1]} with the bar under them"
        )
    with replacing(path) as temporary:
        clip = ImageSequenceClip(list(frames), fps=fps)
        clip.write_videofile(
            str(temporary), codec="libx264", audio=False, logger=None, pixel_format="yuv420p"
        )
        clip.close()


def _render(envs: Any) -> Frame:
    pictures = envs.render()
    if not pictures or pictures[0] is None:
        raise RenderingError(
            f"{envs.spec.id if envs.spec else envs} gave no picture; it must support rgb_array"
        )
    return as_frame(pictures[0])


def as_frame(picture: Any) -> Frame:
    """Return what an environment rendered as a frame (h, w, 3) of bytes, large enough to write on.

    Taken are bytes, and floats from 0 to 1, of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), whose fourth channel is
    the opacity over white. A picture that is narrower than ``NARROWEST`` is enlarged by a whole factor.

    Raises:
        RenderingError: it is of another shape or type, or its floats are not within 0 to 1.
    """
    try:
        array = np.asarray(picture)
    except ValueError as error:  # lists of different lengths
        raise RenderingError(f"a picture must be one array; the environment gave lists: {error}") from error
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise RenderingError(
            f"a picture must have shape (h, w, 3), (h, w, 1), (h, w, 4) or (h, w); the environment gave {np.shape(picture)}"
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise RenderingError(
                f"a picture of floats must lie within 0 to 1; the environment gave {array.min():g} to {array.max():g}: "
                "let it render bytes (uint8)"
            )
        array = np.round(255.0 * array)
    elif array.dtype != np.uint8:
        raise RenderingError(
            f"a picture must be of bytes (uint8), or of floats from 0 to 1; the environment gave {array.dtype}"
        )
    if array.shape[2] == 4:
        opacity = array[:, :, 3:] / 255.0
        array = np.round(opacity * array[:, :, :3] + (1.0 - opacity) * 255.0)
    frame = np.broadcast_to(array, (*array.shape[:2], 3)).astype(np.uint8)
    factor = math.ceil(NARROWEST / frame.shape[1])
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def _check_rate(value: Any, name: str) -> float:
    """Return frames a second.

    Raises:
        TrebiError: they are not a number from 0.01, the least that a video can be written with, to 1,000.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0.01 <= value <= 1000:
        raise TrebiError(f"{name} must be a number of frames a second, from 0.01 to 1000; got {value!r}")
    return float(value)
