"""Published Diffuser models: pickled configurations and weights, read without running anything that is in them.

The folder of a task, ``<task>``, holds ``diffusion/<experiment>`` and ``values/<experiment>``; each of these holds
``*_config.pkl`` and ``state_<epoch>.pt`` (arXiv 2205.09991 and its published code; TREBI's first two stages write the
same). The network's weights are named as ours are.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import Unpickler, UnpicklingError  # noqa: TID251 - its find_class refuses every name but inert ones
from types import NoneType
from typing import IO, Any, Literal

import torch

from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.presets import preset
from trebi_gym.errors import CheckpointError, ConfigError

PACKAGE = "diffuser"
CONFIGS = ("dataset", "model", "diffusion", "trainer")
MAX_CONFIG_BYTES = 1 << 20
"""Published configurations take some hundred bytes."""
MAX_ITEMS, MAX_BYTES_OF_TEXT = 64, 1_000
"""Of a configuration's entry; longer ones are left out, none that is needed is."""
WEIGHT_NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(
        f"torch.{kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte")
    ),
}
"""What a file of plain weights names."""
NORMALIZERS = {"GaussianNormalizer": "gaussian", "LimitsNormalizer": "limits"}

Epoch = int | Literal["latest"]


@dataclass(frozen=True)
class DiffuserModel:
    """One experiment's folder: its configurations as plain data, and the weights of its network."""

    folder: Path
    epoch: int
    configs: dict[str, dict[str, Any]]  # by the name of the file, without _config.pkl
    weights: dict[str, torch.Tensor]

    def value(self, config: str, name: str) -> Any:
        """Return one entry of a configuration.

        Raises:
            CheckpointError: it is not there.
        """
        found = self.configs[config]
        if name not in found:
            raise CheckpointError(
                f"{self.folder / config}_config.pkl has no {name!r}; it has {', '.join(map(str, found))}"
            )
        return found[name]


@dataclass(frozen=True)
class Imported:
    """What a published folder gives: a configuration of ours, and the weights of two of the three models."""

    config: TREBIConfig
    action_size: int
    observation_size: int
    weights: dict[str, dict[str, torch.Tensor]]  # by part
    source: dict[str, Any]  # plain JSON: which files


class _Inert:
    """What stands for any class of the published code: keeps what it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PlainUnpickler(Unpickler):
    """Builds numbers, strings, lists and dictionaries, and inert records for names of the published package."""

    def find_class(self, module: str, name: str) -> Any:
        if module == PACKAGE or module.startswith(PACKAGE + "."):
            return type(name, (_Inert,), {"__module__": module})
        raise UnpicklingError(
            f"it names {module}.{name}, which is not read: only names of {PACKAGE} may be in it"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UnpicklingError(f"it refers to something outside of the file ({pid!r})")


def read_config(path: Path) -> dict[str, Any]:
    """Return the plain entries of a pickled configuration; no code that is in the file or named by it is run.

    Raises:
        CheckpointError: there is no such file, or it holds or names anything but a configuration.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; a published experiment holds {', '.join(_files())}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; a configuration has less than {MAX_CONFIG_BYTES}"
        )
    try:
        packed = path.read_bytes()
        _check_pickle(io.BytesIO(packed), len(packed))
        found = _PlainUnpickler(io.BytesIO(packed)).load()
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable configuration: {error}") from error
    state = getattr(found, "state", None)
    entries = state.get("_dict") if isinstance(state, Mapping) else None
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not a configuration with named entries")
    return {str(key): value for key, value in entries.items() if _plain(value)}


def _plain(value: Any) -> bool:
    """Return whether a value is a number, a string, or a short list of such: others can grow as they are compared."""
    if isinstance(value, (list, tuple)):
        return len(value) <= MAX_ITEMS and all(
            isinstance(item, (str, int, float, NoneType)) and len(str(item)) <= MAX_BYTES_OF_TEXT
            for item in value
        )
    if isinstance(value, int) and value.bit_length() > 64:
        return False
    return isinstance(value, (str, int, float, NoneType)) and len(str(value)) <= MAX_BYTES_OF_TEXT


def _check_pickle(stream: IO[bytes], size: int, names: Collection[str] | None = None) -> None:
    """Raise if a pickle would take memory beyond its size, or names anything but ``names`` (None: whatever it names).

    Python's unpickler makes room for the highest number under which a pickle keeps an object, and some of what PyTorch's
    restricted one may call makes as large an object as it is told.

    Raises:
        UnpicklingError: it does.
    """
    for operation, argument, _ in pickletools.genops(stream):
        if "PUT" in operation.name and isinstance(argument, int) and argument > size:
            raise UnpicklingError(f"it keeps an object under the number {argument}, and has {size} bytes")
        if names is not None and operation.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            named = str(argument).replace(" ", ".")
            if named not in names:
                raise UnpicklingError(f"it names {named}, which no file of weights needs")


def read_experiment(folder: Path, epoch: Epoch = "latest", *, ema: bool = True) -> DiffuserModel:
    """Read one experiment: its configurations, and the weights of an epoch.

    Args:
        folder: holds ``*_config.pkl`` and ``state_<epoch>.pt``.
        epoch: which; ``"latest"`` takes the greatest number.
        ema: the averaged weights, which act; False: those that were optimised.

    Raises:
        CheckpointError: something is missing, or not what it should be.
    """
    epochs = {
        int(match[1]): path
        for path in folder.glob("state_*.pt")
        if (match := re.fullmatch(r"state_(\d+)", path.stem))
    }
    if not epochs:
        raise CheckpointError(f"{folder} holds no state_<epoch>.pt")
    chosen = max(epochs) if epoch == "latest" else epoch
    if chosen not in epochs:
        raise CheckpointError(
            f"{folder} has no epoch {epoch!r}; it has {', '.join(map(str, sorted(epochs)))}, or latest"
        )
    configs = {name: read_config(folder / f"{name}_config.pkl") for name in CONFIGS}
    return DiffuserModel(folder, chosen, configs, _read_weights(epochs[chosen], "ema" if ema else "model"))


def read_published(
    folder: Path, *, epoch: Epoch = "latest", experiment: str | None = None, ema: bool = True
) -> Imported:
    """Read both models of a task's folder and find the configuration of ours that they belong to.

    Args:
        folder: ``<task>``, named after its data set, with ``diffusion`` and ``values`` inside.
        epoch: of both; ``"latest"`` takes each model's greatest number.
        experiment: the experiment's folder within both, where there are several; the values' may add ``_d<discount>``.
        ema: the averaged weights, which act.

    Raises:
        CheckpointError: something is missing, not what it should be, or cannot be expressed by our models.
    """
    diffusion = read_experiment(_experiment(folder / "diffusion", experiment), epoch, ema=ema)
    values = read_experiment(_experiment(folder / "values", experiment), epoch, ema=ema)
    for section, name in (
        ("model", "horizon"),
        ("model", "transition_dim"),
        ("diffusion", "n_timesteps"),
        ("dataset", "normalizer"),
        ("dataset", "env"),
    ):
        ours, theirs = diffusion.value(section, name), values.value(section, name)
        if ours != theirs:
            raise CheckpointError(
                f"{diffusion.folder} and {values.folder} do not belong together: {name} is {ours!r} and {theirs!r}"
            )
    if diffusion.configs["diffusion"].get("predict_epsilon", False):
        raise CheckpointError(
            f"{diffusion.folder}: its network predicts the noise; only one that predicts x0 is read"
        )
    if diffusion.configs["diffusion"].get("clip_denoised", False):
        raise CheckpointError(f"{diffusion.folder}: it clips denoised plans, which our sampler does not do")
    if values.configs["dataset"].get("normed", False):
        raise CheckpointError(
            f"{values.folder}: its values are normalised to [-1, 1]; only plain returns are read"
        )
    changed = diffusion.configs["dataset"].get("preprocess_fns") or values.configs["dataset"].get(
        "preprocess_fns"
    )
    if changed:
        raise CheckpointError(
            f"{folder} was learned from data that went through {changed!r}; only plain data are read"
        )
    normalizer = NORMALIZERS.get(diffusion.value("dataset", "normalizer"))
    if normalizer is None:
        raise CheckpointError(
            f"{diffusion.folder}: the normaliser {diffusion.value('dataset', 'normalizer')!r} is not known; "
            f"known are {', '.join(NORMALIZERS)}"
        )
    task = str(diffusion.value("dataset", "env"))
    try:
        return _imported(diffusion, values, task, normalizer, ema)
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{folder} cannot be expressed by our models: {error}") from error


def _imported(
    diffusion: DiffuserModel, values: DiffuserModel, task: str, normalizer: str, ema: bool
) -> Imported:
    critic = {"name": "temporal", "options": _options(values, ("dim", "dim_mults"))}
    penalty = values.configs["dataset"].get("termination_penalty") or 0.0
    discount = float(values.value("dataset", "discount"))
    trainer, value_trainer = (_training(model) for model in (diffusion, values))
    changes = {
        "horizon": _whole(diffusion.value("model", "horizon")),
        "diffusion_steps": _whole(diffusion.value("diffusion", "n_timesteps")),
        "denoiser": {
            "name": "temporal_unet",
            "options": _options(diffusion, ("dim", "dim_mults", "attention")),
        },
        "reward_critic": critic,
        "cost_critic": critic,
        "discount": discount,
        "cost_discount": discount,
        "termination_reward": float(penalty),
        "termination_cost": -float(penalty),
        "first_action_weight": float(diffusion.value("diffusion", "action_weight")),
        "normalizer": normalizer,
        "episode_length": _whole(diffusion.value("dataset", "max_path_length")),
        "denoiser_training": trainer,
        "critic_training": value_trainer,
    }
    return Imported(
        config=preset("locomotion", task).replace(**changes),
        action_size=_whole(diffusion.value("diffusion", "action_dim")),
        observation_size=_whole(diffusion.value("diffusion", "observation_dim")),
        weights={"diffusion": diffusion.weights, "reward_critic": values.weights},
        source={
            "format": "diffuser",
            "task": task,
            "weights": "ema" if ema else "model",
            "diffusion": {"experiment": diffusion.folder.name, "epoch": diffusion.epoch},
            "values": {"experiment": values.folder.name, "epoch": values.epoch},
        },
    )


def _files() -> list[str]:
    return [*(f"{name}_config.pkl" for name in CONFIGS), "state_<epoch>.pt"]


def _experiment(folder: Path, experiment: str | None) -> Path:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} does not exist; a published task's folder holds diffusion and values"
        )
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if experiment is not None:
        found = [path for path in found if path.name == experiment or path.name.startswith(experiment + "_d")]
    if len(found) != 1:
        names = ", ".join(path.name for path in sorted(folder.iterdir())) or "nothing"
        asked = "one experiment" if experiment is None else f"the experiment {experiment!r}"
        raise CheckpointError(f"{folder} must hold {asked}; it holds {names}: choose with experiment=")
    return found[0]


def _check_weights_file(path: Path) -> None:
    """Raise if a file of weights is packed so that reading it takes memory far beyond its size.

    Raises:
        UnpicklingError: it is.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):  # PyTorch's format from before 1.6: five pickles, then the numbers
        with path.open("rb") as file:
            for _ in range(5):
                _check_pickle(file, size, WEIGHT_NAMES)
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:
            raise UnpicklingError(
                f"it would unpack from {size} bytes to {unpacked}; weights are stored as they are"
            )
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as member:
                    _check_pickle(member, size, WEIGHT_NAMES)


def _read_weights(path: Path, which: str) -> dict[str, torch.Tensor]:
    try:
        _check_weights_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is not a file of plain weights, or is damaged: {reason}") from error
    weights = state.get(which) if isinstance(state, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path} holds no {which!r}; a published state holds step, model and ema")
    found = {
        name.removeprefix("model."): value
        for name, value in weights.items()
        if str(name).startswith("model.")
    }
    if not found or not all(torch.is_tensor(value) for value in found.values()):
        raise CheckpointError(f"{path}: {which!r} holds no weights named model.*")
    return found


def _options(model: DiffuserModel, names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: model.configs["model"][name] for name in names if name in model.configs["model"]}
    if "dim_mults" in found:
        found["dim_mults"] = [_whole(value) for value in found["dim_mults"]]
    return found


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ValueError(f"a whole number is needed, found {value!r}")
    return int(value)


def _training(model: DiffuserModel) -> dict[str, Any]:
    names = {
        "train_batch_size": "batch_size",
        "train_lr": "learning_rate",
        "gradient_accumulate_every": "accumulation",
        "ema_decay": "ema_decay",
    }
    return {
        ours: model.configs["trainer"][name]
        for name, ours in names.items()
        if name in model.configs["trainer"]
    }
