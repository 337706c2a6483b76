"""The file formats that ``load`` reads: one module each, entered in ``SOURCES``."""

from trebi_gym.datasets.sources.base import Reading, Source
from trebi_gym.datasets.sources.d4rl import D4RL
from trebi_gym.datasets.sources.dsrl import DSRL
from trebi_gym.datasets.sources.minari import Minari
from trebi_gym.datasets.sources.native_hdf5 import NativeHDF5

SOURCES: dict[str, Source] = {"native_hdf5": NativeHDF5(), "dsrl": DSRL(), "d4rl": D4RL(), "minari": Minari()}

__all__ = ["SOURCES", "Reading", "Source"]
