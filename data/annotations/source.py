"""Where the labels of one image lie, in whatever form."""

from dataclasses import dataclass

from crossearth.data.common.files import digest
from crossearth.data.raster.archives import Member

VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb")  # of polygons


@dataclass(frozen=True)
class LabelSource:
    """The labels of one image.

    Attributes:
        where: how to name them to the user.
        files: what is read; of a shapefile, its main file first.
        part: what of a file of many images is this one's, as JSON; of "class_folders", the names of `files`.
            Together with `files` it is all that the labels depend on.
    """

    where: str
    files: tuple[Member, ...] = ()
    part: str = ""

    @classmethod
    def of(cls, member: Member) -> "LabelSource":
        """Labels that are one file."""
        return cls(str(member), (member,))

    @property
    def identity(self) -> str:
        """Changes when the labels do."""
        parts = [part for file in self.files for part in (file, *file.sidecars)]
        return digest([self.part, [(part.path, part.size, part.tag) for part in parts]])

    def __str__(self) -> str:
        return self.where
