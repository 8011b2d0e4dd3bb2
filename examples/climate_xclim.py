"""Growing degree days where a crop grows: class shares as weights over climate indices, with xclim.

    pip install xclim netCDF4
    python examples/climate_xclim.py --map demo-output/map.zarr --of Corn

Temperatures are made up: a year of days on the cells of the shares, colder to the north and warmer where the ground is
tilled. Put a file of a reanalysis or of a climate model in their place, and give `to_climate` its grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
import xclim

import xgfm


def temperatures(share: xr.DataArray, seed: int = 0) -> xr.DataArray:
    """Return mean temperatures ``(time, lat, lon)`` of the days of 2024, in K."""
    days = xr.date_range("2024-01-01", "2024-12-31", freq="D")
    day = xr.DataArray(np.arange(len(days)), dims="time", coords={"time": days})
    season = 281 - 14 * np.cos(2 * np.pi * (day - 20) / 366)
    weather = xr.DataArray(np.random.default_rng(seed).normal(0, 3, len(days)), dims="time", coords={"time": days})
    air = (season + weather - 40 * (share["lat"] - share["lat"].mean()) + 2 * share.fillna(0)).transpose("time", ...)
    return air.rename("tas").assign_attrs(units="K", standard_name="air_temperature", cell_methods="time: mean")


def main() -> None:
    """Sum a map in cells, write it, and weigh an index by it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, default=Path("demo-output/map.zarr"), help="a store of a result")
    parser.add_argument("--grid", default="0.02deg", help="climate grid")
    parser.add_argument("--of", default="Corn", help="class")
    parser.add_argument("--min-valid", type=float, default=0.2, help="least share of a cell that the map must cover")
    parser.add_argument("--out", type=Path, default=Path("fractions.nc"))
    options = parser.parse_args()
    fractions = xgfm.to_climate(options.map, options.grid, min_valid=options.min_valid)
    xgfm.to_netcdf(fractions, options.out, overwrite=True)

    file = xr.open_dataset(options.out, decode_coords="all")
    share = file["area_fraction"].set_xindex("class_name").sel(class_name=options.of)
    seen = file["valid_area_fraction"]
    if "time" in share.dims:
        share, seen = share.isel(time=0), seen.isel(time=0)
    percent = xclim.core.units.convert_units_to(share, "%")
    print(f"{options.of}: {float(percent.min()):.1f} to {float(percent.max()):.1f} {percent.attrs['units']} of a cell")

    days = xclim.atmos.growing_degree_days(temperatures(share.drop_vars("time", errors="ignore")), thresh="10 degC")
    days = days.isel(time=0)
    # Shares are of the part of a cell that has a class; with the ground of that part they become areas.
    ground = (file["cell_area"] * seen).where(share.notnull(), 0)
    area = share.fillna(0) * ground
    everywhere, there = days.weighted(ground).mean(), days.weighted(area).mean()
    print(f"{options.of}: {float(area.sum()) / 1e6:.3f} km2 of {float(ground.sum()) / 1e6:.3f} km2")
    print(f"growing degree days: {float(everywhere):.1f} in the cells, {float(there):.1f} where {options.of} grows")
    most = days.where(percent > float(percent.median()))
    print(f"in the {int(most.notnull().sum())} cells with most of it: {float(most.mean()):.1f} {days.attrs['units']}")


if __name__ == "__main__":
    main()
