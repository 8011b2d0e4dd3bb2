"""Classes of a legend as area types of CF, which is how climate tools know land cover.

In: a legend, and a table from its classes to area types. Out: the area type of each class, all of them names that CF
allows, and the CMIP6 variable that holds each. Nothing is guessed: a suggestion has to be asked for and passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from xgfm.cf import flag_words
from xgfm.errors import LabelError

TABLE_VERSION = 13
"""Of CF's area type table, 20 March 2025."""
AREA_TYPES = frozenset(
    """
    air all_area_types bare_ground broadleaf_deciduous_trees broadleaf_evergreen_trees burnt_vegetation
    c3_plant_functional_types c4_plant_functional_types clear_sky cloud convective_cloud crops
    crops_of_c3_plant_functional_types crops_of_c4_plant_functional_types dust_aerosol fire floating_ice
    floating_ice_shelf fresh_free_water grounded_ice_sheet herbaceous_vegetation ice_and_snow_on_land ice_free_land
    ice_free_sea ice_on_land ice_sheet lake_and_inland_sea lake_ice_or_sea_ice land land_ice melt_pond_free_sea_ice
    natural_grasses natural_grasses_of_c3_plant_functional_types natural_grasses_of_c4_plant_functional_types
    needleleaf_deciduous_trees needleleaf_evergreen_trees pastures pastures_of_c3_plant_functional_types
    pastures_of_c4_plant_functional_types permafrost primary_and_secondary_land primary_deciduous_trees
    primary_evergreen_trees rain river sea sea_ice sea_ice_melt_pond sea_ice_ridges secondary_deciduous_trees
    secondary_evergreen_trees shrubs smoke snow snow_free_land stratiform_cloud trees unfrozen_soil urban vegetation
    volcanic_ash_cloud wetland
    """.split()  # noqa: SIM905 - as a list it would take a page
)
"""Every name of the table."""


@dataclass(frozen=True, slots=True)
class CmipVariable:
    """A variable of CMIP6 that is the share of a cell under one area type, and what stands in its table."""

    name: str
    types: tuple[str, ...]
    """Area types that it sums; the first is the one that it says."""
    coordinate: str
    """The table's name of the scalar coordinate that holds the area type."""
    type_name: str
    """Long name of that coordinate."""
    long_name: str


_TREES = (
    "trees", "broadleaf_deciduous_trees", "broadleaf_evergreen_trees", "needleleaf_deciduous_trees",
    "needleleaf_evergreen_trees", "primary_deciduous_trees", "primary_evergreen_trees", "secondary_deciduous_trees",
    "secondary_evergreen_trees",
)  # fmt: skip


def _with_c3_and_c4(name: str) -> tuple[str, ...]:
    return (name, *(f"{name}_of_{kind}_plant_functional_types" for kind in ("c3", "c4")))


CMIP_VARIABLES = (
    CmipVariable("cropFrac", _with_c3_and_c4("crops"), "typecrop", "Crop area type", "Percentage Crop Cover"),
    CmipVariable("treeFrac", _TREES, "typetree", "Tree area type", "Tree Cover Percentage"),
    CmipVariable("grassFrac", _with_c3_and_c4("natural_grasses"), "typenatgr", "Natural grass area type",
                 "Natural Grass Area Percentage"),
    CmipVariable("shrubFrac", ("shrubs",), "typeshrub", "Shrub area type", "Percentage Cover by Shrub"),
    CmipVariable("pastureFrac", _with_c3_and_c4("pastures"), "typepasture", "Pasture area type",
                 "Percentage of Land Which Is Anthropogenic Pasture"),
    CmipVariable("wetlandFrac", ("wetland",), "typewetla", "Wetland area type", "Wetland Percentage Cover"),
    CmipVariable("baresoilFrac", ("bare_ground",), "typebare", "Bare-ground area type",
                 "Bare Soil Percentage Area Coverage"),
    CmipVariable("burntFractionAll", ("burnt_vegetation",), "typeburnt", "Burnt vegetation area type",
                 "Percentage of Entire Grid Cell That Is Covered by Burnt Vegetation (All Classes)"),
)  # fmt: skip
"""Of the tables Lmon and Emon (wetlandFrac); other area types have no variable of their own."""

_WORDS: Mapping[str, str] = {
    "crops": "crop crops cropland corn maize soy soybean soybeans wheat barley rye oats rice cotton sorghum canola "
    "rapeseed sunflower sugarcane sugarbeet potato potatoes beans peas lentils alfalfa millet vegetables orchard "
    "orchards vineyard vineyards agriculture",
    "trees": "tree trees forest forests woodland woodlands mangrove mangroves",
    "shrubs": "shrub shrubs shrubland scrub",
    "natural_grasses": "grass grasses grassland grasslands savanna prairie steppe",
    "pastures": "pasture pastures rangeland hay",
    "wetland": "wetland wetlands marsh marshes swamp bog peatland",
    "lake_and_inland_sea": "lake lakes reservoir reservoirs pond ponds",
    "fresh_free_water": "water flood flooded",
    "river": "river rivers stream streams",
    "sea": "sea ocean",
    "urban": "urban city developed settlement settlements built-up built",
    "bare_ground": "bare barren sand rock desert fallow",
    "burnt_vegetation": "burnt burned burn",
    "snow": "snow",
    "land_ice": "glacier glaciers",
    "cloud": "cloud clouds",
    "smoke": "smoke",
    "vegetation": "vegetation",
}
_MEANT = {word: kind for kind, words in _WORDS.items() for word in words.split()}


def suggest_area_types(classes: Sequence[str]) -> dict[str, str]:
    """Suggest area types by the words of class names: to be read, corrected and passed on as ``area_types=``.

    Parameters
    ----------
    classes
        Names as people write them.

    Returns
    -------
    dict
        From class to area type; a class without a word that is known is left out. Where words disagree, the first one
        decides ("Developed/Barren" is urban).

    Examples
    --------
    >>> suggest_area_types(["Winter Wheat", "Open Water", "Class 7"])
    {'Winter Wheat': 'crops', 'Open Water': 'fresh_free_water'}
    """
    found = {name: [_MEANT[w] for w in re.findall(r"[a-z]+", name.lower()) if w in _MEANT] for name in classes}
    return {name: kinds[0] for name, kinds in found.items() if kinds}


def area_types_of(classes: Sequence[str], given: Mapping[str, str]) -> tuple[str | None, ...]:
    """Return the area type of each class by a table; None for a class that the table leaves out.

    Parameters
    ----------
    classes
        Names of the legend, in order.
    given
        From class, by its name or its word in ``flag_meanings``, to a name of CF's area type table.

    Raises
    ------
    LabelError
        For a class that the legend lacks, one that is given twice, or a type that CF's table lacks.
    """
    places = {name: number for number, name in enumerate(classes)} | {
        word: number for number, word in enumerate(flag_words(classes))
    }
    found: dict[int, str] = {}
    for name, kind in given.items():
        if name not in places:
            raise LabelError(f"area_types= names the class {name!r}, and the map has {list(classes)}; use its names")
        if kind not in AREA_TYPES:
            # By its meaning, or as a slip of the pen; what is less alike means something else.
            meant = list(suggest_area_types([str(kind)]).values())
            near = list(dict.fromkeys([*get_close_matches(str(kind).lower(), AREA_TYPES, n=3, cutoff=0.75), *meant]))
            raise LabelError(
                f"area_types= gives {name!r} the type {kind!r}, which is not in version {TABLE_VERSION} of CF's area "
                f"type table; " + (f"near it are {near}" if near else "see xgfm.climate.area_types.AREA_TYPES")
            )
        if places[name] in found:
            raise LabelError(f"area_types= names the class {classes[places[name]]!r} twice; name it once")
        found[places[name]] = kind
    return tuple(found.get(number) for number in range(len(classes)))
