"""Whether MuJoCo can draw on this machine, found out where a failure cannot abort the interpreter."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys

from trebi_gym.errors import RenderingError

RENDERING_NEEDS = (
    "Rendering a MuJoCo task such as SafeReacher-v0 needs OpenGL: a display, or MUJOCO_GL=egl with an EGL "
    "driver (on Debian and Ubuntu: apt install libegl1 libgl1-mesa-dri), or MUJOCO_GL=osmesa with OSMesa "
    "(apt install libosmesa6)."
)
WINDOW_NEEDS = (
    'render_mode="human" opens a window, and no display was found that can show one: use render_mode="rgb_array", '
    "which draws without one, or trebi record, which makes a film."
)

_logger = logging.getLogger(__name__)

_PROBE_SECONDS = 60
_PROBE = """
import mujoco
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
viewer = OffScreenViewer(model, mujoco.MjData(model), 32, 32)
viewer.render("rgb_array")
"""
_WINDOW_PROBE = """
import glfw
assert glfw.init() and glfw.get_primary_monitor(), "no display"
glfw.window_hint(glfw.VISIBLE, False)
assert glfw.create_window(32, 32, "trial", None, None), "no window"
"""


@functools.cache
def require_mujoco_rendering() -> None:
    """Make sure that MuJoCo can draw here; the first call starts a trial interpreter, and so takes seconds.

    Where neither ``MUJOCO_GL`` nor a display says what to draw with, EGL and then OSMesa are tried, and
    ``MUJOCO_GL`` of this process is set to the one that works: Gymnasium's renderer reads it when it draws
    its first frame.

    Raises:
        RenderingError: nothing works; the message is ``RENDERING_NEEDS``.
    """
    for backend in _candidates():
        if _can_draw(backend):
            if backend is not None:
                os.environ["MUJOCO_GL"] = backend
            return
    raise RenderingError(RENDERING_NEEDS)


@functools.cache
def require_mujoco_window() -> None:
    """Make sure that a window can be opened here, as ``require_mujoco_rendering`` does for frames.

    Raises:
        RenderingError: it cannot; the message is ``WINDOW_NEEDS``.
    """
    if not _succeeds(_WINDOW_PROBE, dict(os.environ), "window"):
        raise RenderingError(WINDOW_NEEDS)


def _candidates() -> tuple[str | None, ...]:
    """Return the values of ``MUJOCO_GL`` to try; None leaves the choice to the renderer."""
    if os.environ.get("MUJOCO_GL"):
        return (os.environ["MUJOCO_GL"],)
    if sys.platform != "linux":
        return (None,)
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return (None, "egl", "osmesa")
    return ("egl", "osmesa")


def _can_draw(backend: str | None) -> bool:
    """Return whether another interpreter, set up like this one, can draw one small frame."""
    environment = dict(os.environ) if backend is None else {**os.environ, "MUJOCO_GL": backend}
    return _succeeds(_PROBE, environment, f"frame with MUJOCO_GL={backend}")


def _succeeds(probe: str, environment: dict[str, str], what: str) -> bool:
    try:
        # -P: a module of the working folder must not stand in for an installed one
        trial = subprocess.run(
            [sys.executable, "-P", "-c", probe],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _logger.info("MuJoCo's trial %s failed: %s", what, error)
        return False
    if trial.returncode != 0:
        _logger.info("MuJoCo's trial %s failed: %s", what, trial.stderr.strip())
    return trial.returncode == 0
