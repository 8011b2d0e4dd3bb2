"""Find one's way in a file of class shares by its CF metadata alone, with cf-xarray.

    pip install cf_xarray netCDF4
    python examples/climate_cf_xarray.py --map demo-output/map.zarr --of Corn

Nothing here knows the names of variables: axes, bounds, areas and classes are found by what the file says of them.
`xgfm demo` writes the map; any store of a result will do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cf_xarray  # noqa: F401 - brings .cf
import xarray as xr

import xgfm


def main() -> None:
    """Sum a map in cells, write it, and read it by its metadata."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, default=Path("demo-output/map.zarr"), help="a store of a result")
    parser.add_argument("--grid", default="0.02deg", help="climate grid")
    parser.add_argument("--of", default="Corn", help="class")
    parser.add_argument("--out", type=Path, default=Path("fractions.nc"))
    options = parser.parse_args()
    xgfm.to_netcdf(xgfm.to_climate(options.map, options.grid), options.out, overwrite=True)

    file = xr.open_dataset(options.out, decode_coords="all")
    share = file.cf["area_fraction"]  # by its standard name
    print(f"axes: {share.cf.axes}")
    print(f"edges of the first row: {file.cf.get_bounds('latitude')[0].values.tolist()}")

    # The class, by the flags of its coordinate.
    word = options.of.lower().replace(" ", "_")
    of_class = share[{"class": (file["class"].cf == word).values}].squeeze("class")
    # Shares are of the part of a cell that has a class; with the cell's area, by its measure, they become areas.
    seen = file["valid_area_fraction"] * file.cf["area"]
    print(f"{options.of}: {float((of_class * seen).sum()) / 1e6:.3f} km2 of {float(seen.sum()) / 1e6:.3f} km2")

    # The map of 30 m carries its classes in the same way.
    store = xr.open_zarr(options.map, decode_coords="all", mask_and_scale=False)
    name = next(n for n, v in store.data_vars.items() if "flag_meanings" in v.attrs)
    print(f"{options.of}: {int((store[name].cf == word).sum())} pixels of the map")


if __name__ == "__main__":
    main()
