"""The file formats that ``load`` reads: one module each, entered in ``SOURCES``."""

from trebi_gym.datasets.sources.base import Reading, Source
from trebi_gym.datasets.sources.native_hdf5 import NativeHDF5

SOURCES: dict[str, Source] = {"native_hdf5": NativeHDF5()}

__all__ = ["SOURCES", "Reading", "Source"]
